"""BOFT: the inputs of a module are rotated by a product of sparse orthogonal matrices."""

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
class Boft(Targeted):
    """y = s * (W R x) with R orthogonal; R is made dense, in_features x in_features.

    Attributes:
        boft_block_size: size of a block, or 0 if their number is given.
        boft_block_num: number of blocks, or 0 if their size is given.
    """

    label: ClassVar[str] = "boft"
    family: ClassVar[str] = "reparameterized"
    paper: ClassVar[str] = "Liu et al. 2024, Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization"
    source: ClassVar[str] = "section 4, equation 3; peft 0.21 tuners/boft/layer.py Linear.forward without its CUDA extension"
    not_modelled: ClassVar[str] = "butterfly factors above 1 (they need peft's CUDA extension), boft_dropout"

    boft_block_size: int = 4
    boft_block_num: int = 0

    def check(self) -> None:
        """Raise InputError unless exactly one of number and size of the blocks is given."""
        sizes = (self.boft_block_size, self.boft_block_num)
        if (sizes[0] == 0) == (sizes[1] == 0) or min(sizes) < 0:
            raise InputError(f"boft: boft_block_size={sizes[0]} and boft_block_num={sizes[1]}; give one and set the other to 0")

    def peft_config(self) -> dict[str, Any]:
        """`BOFTConfig` of peft 0.21."""
        blocks = {"boft_block_size": self.boft_block_size, "boft_block_num": self.boft_block_num}
        return {"peft_type": "BOFT", **self.peft_targets(), **blocks}

    def linear(self, model: "Assembly", site: "Site", x: Tensor, base: "Base") -> Tensor:
        """Rotate the module's input in the model's dtype, and scale its output. Raises InputError for blocks that do not fit."""
        if not self.targets(model.path(site.module), model.layer):
            return base(x)
        tape = model.tape
        out_features, width = site.weight.shape
        if width % (self.boft_block_size or self.boft_block_num):
            raise InputError(
                f"boft: {site.module} has {width} inputs, which do not divide into blocks "
                f"({self.boft_block_size or self.boft_block_num}); choose a divisor"
            )
        size = self.boft_block_size or width // self.boft_block_num
        dtype = self.dtype(model)
        blocks = model.adapter(f"{site.module}.boft_R", (1, width // size, size, size), dtype)
        scale = model.adapter(f"{site.module}.boft_s", (out_features, 1), dtype)
        eye = _constant(tape, "eye", (width, width), x.dtype)
        ones = _constant(tape, "ones", (out_features, 1), x.dtype)
        small = _cayley(tape, blocks)
        dense = tape.fresh((width, width), dtype, True)
        tape.record("block_diag", (small,), dense, gradients=(Gradient(small, round_block(small.nbytes)),))
        order = _constant(tape, "permutation", (width, width), x.dtype)  # peft leaves the permutation in host memory
        sparse = pw.cast(tape, dense, x.dtype)
        permuted = batched(tape, sparse, order, (width, width), width)
        butterfly = batched(tape, order, permuted, (width, width), width)
        rotation = batched(tape, butterfly, eye, (width, width), width)
        outer = pw.multiply(tape, scale, ones)
        turned = batched(tape, x, rotation, x.shape, width)
        y = base(turned)
        if site.bias is not None:
            y = pw.add(tape, y, pw.detached(site.bias), "sub")
        out = pw.multiply(tape, y, tape.view("squeeze", outer, (out_features,)))
        if site.bias is not None:
            out = pw.add(tape, out, pw.detached(site.bias))
        result = pw.cast(tape, out, x.dtype)
        tape.hold(small, order, sparse, butterfly, rotation, outer, turned)
        return result


def _constant(tape: Tape, kind: str, shape: tuple[int, ...], dtype: str) -> Tensor:
    out = tape.fresh(shape, dtype, False)
    return tape.record(kind, (), out)


def _cayley(tape: Tape, blocks: Tensor) -> Tensor:
    """`(I - S) (I + S)^-1` for each block, by `torch.linalg.solve`."""
    full = round_block(blocks.nbytes)
    out = tape.fresh(blocks.shape, blocks.dtype, True)
    kept = tape.fresh((2, *blocks.shape), blocks.dtype, False)
    tape.record("skew", (), kept)
    gradient = Gradient(blocks, full, scratch=3 * full)
    return tape.record("solve", (blocks, kept), out, saved=(kept, out), scratch=2 * full, gradients=(gradient,))
