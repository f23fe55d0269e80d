"""SSF: every linear layer and norm is followed by a trained scale and shift."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.methods.targeted import Targeted

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly, Base, Site


@dataclass(frozen=True, slots=True)
class Ssf(Targeted):
    """y' = g * y + b after each adapted module and each norm of the layers."""

    label: ClassVar[str] = "ssf"
    family: ClassVar[str] = "additive"
    paper: ClassVar[str] = "Lian et al. 2022, Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning"
    source: ClassVar[str] = "section 3.2, equation 2"
    code_changes: ClassVar[str] = "a scale and a shift after every module"
    effort: ClassVar[str] = "model code"

    autocast_adapter_dtype: bool = False

    def _shifted(self, model: "Assembly", name: str, y: Tensor) -> Tensor:
        tape, size = model.tape, (int(y.shape[-1]),)
        scale = model.adapter(f"{name}.ssf_scale", size, self.dtype(model))
        out = pw.multiply(tape, y, scale)
        return pw.add(tape, out, model.adapter(f"{name}.ssf_shift", size, self.dtype(model)))

    def linear(self, model: "Assembly", site: "Site", x: Tensor, base: "Base") -> Tensor:
        """Scale and shift the module's output."""
        y = base(x)
        return self._shifted(model, site.module, y) if self.adapts(model, site) else y

    def normed(self, model: "Assembly", module: str, y: Tensor) -> Tensor:
        """Scale and shift the norm's output."""
        return y if model.layer is None else self._shifted(model, module, y)

    def peft_config(self) -> None:
        """PEFT does not have it."""
        return
