"""QA-LoRA: the input of A is averaged over the groups of the quantized base, so that the result merges into its zero points."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import linear
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Tensor, round_block
from tuneplan.planner.methods.targeted import Targeted

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly, Base, Site


@dataclass(frozen=True, slots=True)
class QaLora(Targeted):
    """y = W x + s B A pool(x), pool the mean over groups of inputs.

    Attributes:
        r: rank.
        group_size: inputs that share a scale in the base.
    """

    label: ClassVar[str] = "qa_lora"
    family: ClassVar[str] = "quantized"
    paper: ClassVar[str] = "Xu et al. 2024, QA-LoRA: Quantization-Aware Low-Rank Adaptation of Large Language Models"
    source: ClassVar[str] = "section 3.3, algorithm 1"
    code_changes: ClassVar[str] = "an adapter class of its own"
    effort: ClassVar[str] = "model code"
    batchable: ClassVar[bool] = True

    r: int = 8
    group_size: int = 32

    def linear(self, model: "Assembly", site: "Site", x: Tensor, base: "Base") -> Tensor:
        """Add the product of the pooled input. Raises InputError for groups that do not fit."""
        y = base(x)
        if not self.adapts(model, site):
            return y
        tape = model.tape
        out_features, in_features = site.weight.shape
        if self.group_size < 1 or in_features % self.group_size:
            raise InputError(f"qa_lora: {site.module} has {in_features} inputs, no multiple of group_size={self.group_size}")
        dtype = self.dtype(model)
        a = model.adapter(f"{site.module}.lora_A.weight", (self.r, in_features // self.group_size), dtype)
        b = model.adapter(f"{site.module}.lora_B.weight", (out_features, self.r), dtype)
        wide = pw.cast(tape, x, dtype)
        pooled = tape.fresh((*x.shape[:-1], in_features // self.group_size), dtype, wide.requires_grad)
        tape.record("mean", (wide,), pooled, gradients=(Gradient(wide, round_block(wide.nbytes)),))
        product = pw.scale(tape, linear(tape, linear(tape, pooled, a), b))
        result = pw.add(tape, y, product)
        tape.hold(wide)
        return pw.cast(tape, result, y.dtype)
