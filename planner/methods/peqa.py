"""PEQA: the base is whole numbers, and only their scales are trained."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.graph.matmul import linear
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Tensor, round_block
from tuneplan.planner.methods.part import Part
from tuneplan.planner.methods.targeted import Targeted

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly, Base, Site


@dataclass(frozen=True, slots=True)
class Peqa(Targeted):
    """y = (s * W_int) x with s trained, one for each output; compose it with quantized_base for the storage of W_int."""

    label: ClassVar[str] = "peqa"
    family: ClassVar[str] = "quantized"
    paper: ClassVar[str] = "Kim et al. 2023, Memory-Efficient Fine-Tuning of Compressed LLMs via sub-4-bit Integer Quantization"
    source: ClassVar[str] = "section 3.2, equation 2"
    not_modelled: ClassVar[str] = "groups smaller than a row"
    code_changes: ClassVar[str] = "a linear layer of its own"
    effort: ClassVar[str] = "kernel"

    autocast_adapter_dtype: bool = False

    def at_inference(self) -> Part | None:
        """Nothing: trained scales take the place of those of the base."""
        return None

    def linear(self, model: "Assembly", site: "Site", x: Tensor, base: "Base") -> Tensor:
        """Make the weight dense, scale its rows and multiply."""
        if not self.adapts(model, site):
            return base(x)
        tape = model.tape
        scale = model.adapter(f"{site.module}.scale", (site.weight.shape[0], 1), self.dtype(model))
        dense = model.dense_weight(site, x.dtype)
        weight = tape.fresh(site.weight.shape, x.dtype, True)
        gradient = Gradient(scale, round_block(scale.nbytes), scratch=round_block(weight.nbytes))
        tape.record("scale_rows", (dense, scale), weight, saved=(dense,), gradients=(gradient,))
        y = linear(tape, x, weight, site.bias)
        tape.hold(dense, weight)
        return y
