"""IA3: keys, values and the inner activations of the MLP are scaled by trained vectors."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.methods.targeted import Targeted

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly, Base, Site


@dataclass(frozen=True, slots=True)
class Ia3(Targeted):
    """y = l * (W x), or W (l * x) for feed-forward modules.

    Attributes:
        feedforward_modules: of the targets, those whose input is scaled instead of their output.
    """

    label: ClassVar[str] = "ia3"
    family: ClassVar[str] = "additive"
    paper: ClassVar[str] = (
        "Liu et al. 2022, Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning"
    )
    source: ClassVar[str] = "section 3.3; peft 0.21 tuners/ia3/layer.py Linear.forward"
    batchable: ClassVar[bool] = True

    target_modules: tuple[str, ...] = ("k_proj", "v_proj", "down_proj")
    feedforward_modules: tuple[str, ...] = ("down_proj",)

    def peft_config(self) -> dict[str, Any]:
        """`IA3Config` of peft 0.21."""
        return {"peft_type": "IA3", **self.peft_targets(), "feedforward_modules": list(self.feedforward_modules)}

    def linear(self, model: "Assembly", site: "Site", x: Tensor, base: "Base") -> Tensor:
        """Scale the module's input or output."""
        if not self.adapts(model, site):
            return base(x)
        tape = model.tape
        out_features, in_features = site.weight.shape
        before = any(site.module == name or site.module.endswith(f".{name}") for name in self.feedforward_modules)
        shape = (1, in_features) if before else (out_features, 1)
        vector = model.adapter(f"{site.module}.ia3_l", shape, self.dtype(model))
        scaling = tape.view("flatten", pw.scale(tape, vector), (shape[0] * shape[1],))
        if before:
            wide = pw.cast(tape, x, scaling.dtype)
            y = base(pw.cast(tape, pw.multiply(tape, wide, scaling), x.dtype))
            tape.hold(wide)
            return y
        y = base(x)
        return pw.cast(tape, pw.multiply(tape, y, scaling), y.dtype)
