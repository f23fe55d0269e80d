"""OFT: the inputs of a module are rotated by trained orthogonal blocks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import batched
from tuneplan.planner.graph.tape import Gradient, Tape
from tuneplan.planner.graph.tensor import Tensor, round_block
from tuneplan.planner.methods.targeted import Targeted

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly, Base, Site


@dataclass(frozen=True, slots=True)
class Oft(Targeted):
    """y = W R x, R block-diagonal and orthogonal by Cayley's transform of a skew-symmetric matrix.

    Attributes:
        r: number of blocks, or 0 if their size is given.
        oft_block_size: size of a block, or 0 if their number is given.
        num_cayley_neumann_terms: terms of the series that stands for the inverse.
    """

    label: ClassVar[str] = "oft"
    family: ClassVar[str] = "reparameterized"
    paper: ClassVar[str] = "Qiu et al. 2023, Controlling Text-to-Image Diffusion by Orthogonal Finetuning; Qiu et al. 2025, OFTv2"
    source: ClassVar[str] = "OFTv2 section 3 and equation 4; peft 0.21 tuners/oft/layer.py OFTRotationModule.forward"
    not_modelled: ClassVar[str] = "use_cayley_neumann=false, coft, block_share, module_dropout"

    r: int = 0
    oft_block_size: int = 32
    num_cayley_neumann_terms: int = 5

    def check(self) -> None:
        """Raise InputError unless exactly one of number and size of the blocks is given."""
        if (self.r == 0) == (self.oft_block_size == 0) or min(self.r, self.oft_block_size) < 0:
            raise InputError(f"oft: r={self.r} and oft_block_size={self.oft_block_size}; give one and set the other to 0")
        if self.num_cayley_neumann_terms < 2:
            raise InputError(f"oft: num_cayley_neumann_terms={self.num_cayley_neumann_terms} is too few; use 2 or more")

    def peft_config(self) -> dict[str, Any]:
        """`OFTConfig` of peft 0.21."""
        blocks = {"r": self.r, "oft_block_size": self.oft_block_size}
        return {"peft_type": "OFT", **self.peft_targets(), **blocks, "num_cayley_neumann_terms": self.num_cayley_neumann_terms}

    def linear(self, model: "Assembly", site: "Site", x: Tensor, base: "Base") -> Tensor:
        """Rotate the module's input in the adapter's dtype."""
        if not self.targets(model.path(site.module), model.layer):
            return base(x)
        tape = model.tape
        in_features = site.weight.shape[1]
        count = (
            nearest_divisor(in_features, self.r) if self.r else in_features // nearest_divisor(in_features, self.oft_block_size)
        )
        size = in_features // count
        dtype = self.dtype(model)
        weight = model.adapter(f"{site.module}.oft_R.weight", (count, size * (size - 1) // 2), dtype)
        for name in ("rows", "cols"):
            model.buffer(f"{site.module}.oft_R.{name}", (size * (size - 1) // 2,), "int64")
        wide = pw.cast(tape, x, dtype)
        rotation = self._rotation(tape, weight, size)
        turned = batched(tape, wide, rotation, wide.shape, size)
        joined = pw.copy(tape, turned, "reshape")
        tape.hold(rotation, turned, wide)
        narrow = pw.cast(tape, joined, x.dtype)
        y = base(narrow)
        tape.hold(joined)
        return y

    def _rotation(self, tape: Tape, weight: Tensor, size: int) -> Tensor:
        """Cayley's transform by a Neumann series: sums of powers, made in place."""
        shape = (weight.shape[0], size, size)
        full = round_block(tape.fresh(shape, weight.dtype, False).nbytes)
        matrix = tape.fresh(shape, weight.dtype, True)
        tape.record("index_put", (weight,), matrix, gradients=(Gradient(weight, round_block(weight.nbytes), scratch=full),))
        skew = tape.fresh(shape, weight.dtype, True)
        tape.record("skew", (matrix,), skew, gradients=(Gradient(matrix, full, scratch=full),))
        tape.hold(matrix)
        total = tape.fresh(shape, weight.dtype, False)
        tape.record("eye", (), total, scratch=round_block(4 * size * size))
        powers = [skew]
        total = pw.add_in_place(tape, total, skew)
        for _ in range(2, self.num_cayley_neumann_terms):
            powers.append(batched(tape, powers[-1], skew, shape, size))
            total = pw.add_in_place(tape, total, powers[-1])
        tape.hold(*powers)
        return total


def nearest_divisor(dimension: int, wanted: int) -> int:
    """The divisor of a dimension that is nearest to a number, the larger of two as near.

    Mirrors `adjust_oft_parameters` of peft 0.21 tuners/oft/layer.py.
    """
    if wanted < dimension:
        higher = wanted
        while higher <= dimension and dimension % higher:
            higher += 1
    else:
        return dimension
    lower = wanted
    while lower > 1 and dimension % lower:
        lower -= 1
    return lower if wanted - lower <= higher - wanted else higher
