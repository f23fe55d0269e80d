"""BitDelta: what full fine-tuning changed is kept as one bit a weight and one trained scale a matrix."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import linear
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.methods.targeted import Targeted

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly, Base, Site


@dataclass(frozen=True, slots=True)
class BitDelta(Targeted):
    """y = W x + a S x with S in {-1, 1}, of which the scales a are trained by distillation."""

    label: ClassVar[str] = "bitdelta"
    family: ClassVar[str] = "quantized"
    paper: ClassVar[str] = "Liu et al. 2024, BitDelta: Your Fine-Tune May Only Be Worth One Bit"
    source: ClassVar[str] = "section 3.1, equations 1 to 3"
    not_modelled: ClassVar[str] = "the full fine-tuning before it; a kernel that multiplies packed bits"
    code_changes: ClassVar[str] = "a linear layer of its own, and a kernel to serve it"
    effort: ClassVar[str] = "kernel"
    batchable: ClassVar[bool] = True

    autocast_adapter_dtype: bool = False

    def linear(self, model: "Assembly", site: "Site", x: Tensor, base: "Base") -> Tensor:
        """Unpack the signs and add their scaled product."""
        y = base(x)
        if not self.adapts(model, site):
            return y
        tape = model.tape
        model.adapter(f"{site.module}.signs", (-(-site.weight.numel // 8),), "uint8", trained=False)
        scale = model.adapter(f"{site.module}.delta_scale", (1,), self.dtype(model))
        signs = tape.fresh(site.weight.shape, x.dtype, False)
        tape.record("unpack", (), signs)
        out = pw.add(tape, y, pw.multiply(tape, linear(tape, x, signs), scale))
        tape.hold(signs)
        return out
