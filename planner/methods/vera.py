"""VeRA: LoRA with A and B random, frozen and shared by all modules, and two trained vectors a module."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import linear
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.methods.part import Part
from tuneplan.planner.methods.targeted import Targeted

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly, Base, Site


@dataclass(frozen=True, slots=True)
class Vera(Targeted):
    """y = W x + b * (B (d * (A x))).

    Attributes:
        r: rank.
        vera_dropout: probability of dropping an input of A.
        save_projection: A and B are in the checkpoint.
    """

    label: ClassVar[str] = "vera"
    family: ClassVar[str] = "reparameterized"
    paper: ClassVar[str] = "Kopiczko et al. 2024, VeRA: Vector-based Random Matrix Adaptation"
    source: ClassVar[str] = "section 3.1, equation 2; peft 0.21 tuners/vera/layer.py Linear.forward"
    batchable: ClassVar[bool] = True

    r: int = 256
    vera_dropout: float = 0.0
    save_projection: bool = True

    def at_inference(self) -> Part:
        """The same without dropout."""
        return replace(self, vera_dropout=0.0)

    def peft_config(self) -> dict[str, Any]:
        """`VeraConfig` of peft 0.21."""
        rest = {"r": self.r, "vera_dropout": self.vera_dropout, "save_projection": self.save_projection}
        return {"peft_type": "VERA", **self.peft_targets(), **rest}

    def linear(self, model: "Assembly", site: "Site", x: Tensor, base: "Base") -> Tensor:
        """Add the product; A and B are cut out of matrices that fit the largest module."""
        y = base(x)
        if not self.adapts(model, site):
            return y
        tape = model.tape
        out_features, in_features = site.weight.shape
        dtype = self.dtype(model)
        model.meet("vera_in", in_features)
        model.meet("vera_out", out_features)
        a = model.shared("vera_A", (self.r, in_features), dtype)
        b = model.shared("vera_B", (out_features, self.r), dtype)
        inner = model.adapter(f"{site.module}.vera_lambda_d", (self.r,), dtype)
        outer = model.adapter(f"{site.module}.vera_lambda_b", (out_features,), dtype)
        if site.form:
            y = pw.copy(tape, y)
        wide = pw.cast(tape, x, dtype)
        low = pw.multiply(tape, inner, linear(tape, pw.dropout(tape, wide, self.vera_dropout), a))
        result = pw.add(tape, y, pw.multiply(tape, outer, linear(tape, low, b)))
        tape.hold(wide)
        return pw.cast(tape, result, y.dtype)

    def finish(self, model: "Assembly") -> None:
        """Declare A and B, as large as the largest module."""
        if "vera_in" in model.largest:
            dtype, saved = self.dtype(model), self.save_projection
            wide, high = model.largest["vera_in"], model.largest["vera_out"]
            model.common("vera_A", (self.r, wide), dtype, trained=False, saved=saved, buffer=True)
            model.common("vera_B", (high, self.r), dtype, trained=False, saved=saved, buffer=True)
