"""MiSS: one trained block a module, shared by all groups of its inputs."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import batched
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Tensor, round_block
from tuneplan.planner.methods.part import Part
from tuneplan.planner.methods.targeted import Targeted

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly, Base, Site


@dataclass(frozen=True, slots=True)
class Miss(Targeted):
    """y = W x + D^T sum of x in groups of r.

    Attributes:
        r: rows of D; inputs are summed in groups of so many.
        miss_dropout: probability of dropping an input.
    """

    label: ClassVar[str] = "miss"
    family: ClassVar[str] = "reparameterized"
    paper: ClassVar[str] = "Kang and Yin 2024, MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing Structure"
    source: ClassVar[str] = "peft 0.21 tuners/miss/layer.py MissLinear.forward"
    not_modelled: ClassVar[str] = "the bat and mini initializations, which change the forward"

    r: int = 64
    miss_dropout: float = 0.0

    def at_inference(self) -> Part:
        """The same without dropout."""
        return replace(self, miss_dropout=0.0)

    def peft_config(self) -> dict[str, Any]:
        """`MissConfig` of peft 0.21."""
        return {"peft_type": "MISS", **self.peft_targets(), "r": self.r, "miss_dropout": self.miss_dropout}

    def linear(self, model: "Assembly", site: "Site", x: Tensor, base: "Base") -> Tensor:
        """Add the product of the grouped sums with the block."""
        y = base(x)
        if not self.adapts(model, site):
            return y
        tape = model.tape
        out_features, in_features = site.weight.shape
        dtype = self.dtype(model)
        block = model.adapter(f"{site.module}.miss_block", (self.r, out_features), dtype)
        if site.form:
            y = pw.copy(tape, y)
        padded = x
        if in_features % self.r:
            shape = (*x.shape[:-1], -(-in_features // self.r) * self.r)
            padded = tape.fresh(shape, x.dtype, x.requires_grad)
            tape.record("pad", (x,), padded, gradients=(Gradient(x, round_block(x.nbytes)),))
        wide = pw.cast(tape, padded, dtype)
        dropped = pw.dropout(tape, wide, self.miss_dropout)
        low = tape.fresh((*x.shape[:-1], self.r), dtype, dropped.requires_grad)
        tape.record("sum", (dropped,), low, gradients=(Gradient(dropped, round_block(dropped.nbytes)),))
        result = pw.add(tape, y, batched(tape, low, block, (*x.shape[:-1], out_features), self.r))
        tape.hold(wide)
        return pw.cast(tape, result, y.dtype)
