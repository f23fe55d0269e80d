"""LoHa: the change of a weight is the elementwise product of two low-rank products."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import linear
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Tensor, round_block
from tuneplan.planner.methods.targeted import Targeted

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly, Base, Site


@dataclass(frozen=True, slots=True)
class LoHa(Targeted):
    """y = W x + (alpha / r) ((A1 B1) * (A2 B2)) x.

    Attributes:
        r: rank of each of the two products.
        alpha: numerator of the scaling; no effect on memory or time.
    """

    label: ClassVar[str] = "loha"
    family: ClassVar[str] = "reparameterized"
    paper: ClassVar[str] = (
        "Hyeon-Woo et al. 2022, FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning"
    )
    source: ClassVar[str] = "equation 3; peft 0.21 tuners/loha/layer.py HadaWeight and Linear"
    not_modelled: ClassVar[str] = "rank_dropout and module_dropout"

    r: int = 8
    alpha: float = 8

    def peft_config(self) -> dict[str, Any]:
        """`LoHaConfig` of peft 0.21."""
        return {"peft_type": "LOHA", **self.peft_targets(), "r": self.r, "alpha": self.alpha}

    def linear(self, model: "Assembly", site: "Site", x: Tensor, base: "Base") -> Tensor:
        """Build the change of the weight, as large as the weight, and multiply by it."""
        y = base(x)
        if not self.adapts(model, site):
            return y
        tape = model.tape
        out_features, in_features = site.weight.shape
        dtype = self.dtype(model)
        factors = []
        for pair in ("w1", "w2"):
            factors.append(model.adapter(f"{site.module}.hada_{pair}_a", (out_features, self.r), dtype))
            factors.append(model.adapter(f"{site.module}.hada_{pair}_b", (self.r, in_features), dtype))
        delta = tape.fresh(site.weight.shape, dtype, True)
        full = round_block(delta.nbytes)
        flops = 2 * 2 * out_features * in_features * self.r
        # In its backward: the scaled gradient, one product, and two products with it; the factors are multiplied again.
        tape.record(
            "hadamard",
            tuple(factors),
            delta,
            saved=tuple(factors),
            gradients=tuple([Gradient(f, round_block(f.nbytes), flops=flops * 3 // 4, moved=4 * full) for f in factors]),
            scratch=2 * full,
            flops=flops,
            workspace=4 * full - sum(round_block(f.nbytes) for f in factors[2:]),
        )
        wide = pw.cast(tape, x, dtype)
        product = linear(tape, wide, delta)
        tape.hold(delta, wide)
        result = pw.add(tape, y, product)
        return pw.cast(tape, result, y.dtype)
