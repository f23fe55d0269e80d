"""LoKr: the change of a weight is the Kronecker product of a small matrix and a larger one of low rank."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import batched, linear
from tuneplan.planner.graph.tape import Gradient, Tape
from tuneplan.planner.graph.tensor import Tensor, round_block
from tuneplan.planner.methods.targeted import Targeted

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly, Base, Site


def factorization(dimension: int, factor: int = -1) -> tuple[int, int]:
    """The two factors of a dimension, the smaller first: as close to each other as they can be, or near `factor`.

    Mirrors `factorization` of peft 0.21 tuners/lokr/layer.py (from LyCORIS).
    """
    if factor > 0 and dimension % factor == 0:
        return factor, dimension // factor
    limit = dimension if factor == -1 else factor
    small, large = 1, dimension
    while small < large:
        candidate = small + 1
        while dimension % candidate:
            candidate += 1
        other = dimension // candidate
        if candidate + other > small + large or candidate > limit:
            break
        small, large = candidate, other
    return min(small, large), max(small, large)


@dataclass(frozen=True, slots=True)
class LoKr(Targeted):
    """y = W x + (alpha / r) (C kron (A B)) x.

    Attributes:
        r: rank of the larger factor, which is dense where that is not smaller.
        alpha: numerator of the scaling; no effect on memory or time.
        decompose_both: the small factor is of low rank too.
        decompose_factor: size of the small factor; -1 for the most even split.
    """

    label: ClassVar[str] = "lokr"
    family: ClassVar[str] = "reparameterized"
    paper: ClassVar[str] = (
        "Edalati et al. 2022, KronA: Parameter Efficient Tuning with Kronecker Adapter; Yeh et al. 2024, LyCORIS"
    )
    source: ClassVar[str] = "KronA equation 4; LyCORIS section 3.1; peft 0.21 tuners/lokr/layer.py"
    not_modelled: ClassVar[str] = "rank_dropout and module_dropout"

    r: int = 8
    alpha: float = 8
    decompose_both: bool = False
    decompose_factor: int = -1

    def peft_config(self) -> dict[str, Any]:
        """`LoKrConfig` of peft 0.21."""
        split = {"decompose_both": self.decompose_both, "decompose_factor": self.decompose_factor}
        return {"peft_type": "LOKR", **self.peft_targets(), "r": self.r, "alpha": self.alpha, **split}

    def linear(self, model: "Assembly", site: "Site", x: Tensor, base: "Base") -> Tensor:
        """Build the change of the weight, as large as the weight, and multiply by it."""
        y = base(x)
        if not self.adapts(model, site):
            return y
        tape = model.tape
        out_features, in_features = site.weight.shape
        dtype = self.dtype(model)
        (out_small, out_large), (in_small, in_large) = (
            factorization(size, self.decompose_factor) for size in (out_features, in_features)
        )
        low_both = self.decompose_both and self.r < max(out_small, in_small) / 2
        first = self._factor(model, f"{site.module}.lokr_w1", (out_small, in_small), low_both, dtype)
        second = self._factor(
            model, f"{site.module}.lokr_w2", (out_large, in_large), self.r < max(out_large, in_large) / 2, dtype
        )
        delta = pw.scale(tape, _kron(tape, first, second, site.weight.shape))
        wide = pw.cast(tape, x, dtype)
        product = linear(tape, wide, delta)
        tape.hold(delta, wide)
        result = pw.add(tape, y, product)
        return pw.cast(tape, result, y.dtype)

    def _factor(self, model: "Assembly", name: str, shape: tuple[int, int], low: bool, dtype: str) -> Tensor:
        if not low:
            return model.adapter(name, shape, dtype)
        a = model.adapter(f"{name}_a", (shape[0], self.r), dtype)
        b = model.adapter(f"{name}_b", (self.r, shape[1]), dtype)
        return batched(model.tape, a, b, shape, self.r)


def _kron(tape: Tape, a: Tensor, b: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`torch.kron`: each factor's gradient is a full-size product that is then summed."""
    out = tape.fresh(shape, a.dtype, True)
    full = round_block(out.nbytes)
    gradients = tuple([Gradient(t, round_block(t.nbytes), scratch=full, moved=3 * full) for t in (a, b)])
    return tape.record("kron", (a, b), out, saved=(a, b), gradients=gradients)
