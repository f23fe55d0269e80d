"""Diff pruning: a change of every weight under a trained mask that becomes sparse."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import linear
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Tensor, round_block
from tuneplan.planner.methods.part import Part
from tuneplan.planner.methods.targeted import Targeted

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly, Base, Site


@dataclass(frozen=True, slots=True)
class DiffPruning(Targeted):
    """y = (W + z * d) x with d and the parameters of the mask z trained, z a stretched sigmoid of them (hard concrete).

    Attributes:
        structured: one mask for each matrix on top of that for each weight (the paper's S-Diff pruning).
    """

    label: ClassVar[str] = "diff_pruning"
    family: ClassVar[str] = "selective"
    paper: ClassVar[str] = "Guo, Rush and Kim 2021, Parameter-Efficient Transfer Learning with Diff Pruning"
    source: ClassVar[str] = "section 3, equations 1 and 3; section 3.2 for the structured masks"
    not_modelled: ClassVar[str] = "the sparse checkpoint after training (0.5 % of the weights); embeddings and norms"
    code_changes: ClassVar[str] = "a linear layer of its own and a penalty in the loss"
    effort: ClassVar[str] = "model code"

    structured: bool = False
    autocast_adapter_dtype: bool = False

    def at_inference(self) -> Part | None:
        """Nothing: the change is added to the weights."""
        return None

    def linear(self, model: "Assembly", site: "Site", x: Tensor, base: "Base") -> Tensor:
        """Draw the mask, add the masked change and multiply."""
        if not self.adapts(model, site):
            return base(x)
        tape, dtype, shape = model.tape, self.dtype(model), site.weight.shape
        change = model.adapter(f"{site.module}.diff", shape, dtype)
        alpha = model.adapter(f"{site.module}.log_alpha", shape, dtype)
        size = round_block(change.nbytes)
        noise = tape.fresh(shape, dtype, False)
        tape.record("noise", (), noise)
        shifted = tape.fresh(shape, dtype, True)
        tape.record("add", (alpha, noise), shifted, gradients=(Gradient(alpha, None),))
        soft = tape.fresh(shape, dtype, True)
        tape.record("sigmoid", (shifted,), soft, saved=(soft,), gradients=(Gradient(shifted, size),))
        stretched = pw.shift(tape, pw.scale(tape, soft))
        mask = tape.fresh(shape, dtype, True)
        clamp = Gradient(stretched, size, scratch=2 * size)
        tape.record("clamp", (stretched,), mask, saved=(stretched,), gradients=(clamp,))
        if self.structured:
            whole = model.adapter(f"{site.module}.group_alpha", (1,), dtype)
            mask = pw.multiply(tape, mask, whole)
        weight = pw.add(tape, pw.detached(site.weight), pw.multiply(tape, mask, change))
        y = linear(tape, x, weight, site.bias)
        tape.hold(mask, weight)
        return y
