"""Operators that write into a tensor that is there already.

Rules: torch 2.13 derivatives.yaml, and `CopySlices` of torch/csrc/autograd/functions/tensor.cpp.
"""

from tuneplan.planner.graph.tape import Gradient, Op, Tape
from tuneplan.planner.graph.tensor import Tensor, round_block


def scale_in_place(tape: Tape, x: Tensor) -> Tensor:
    """`x *= c` with a number or a buffer that needs no gradient: the storage of `x`; the gradient is scaled too."""
    out = Tensor(x.storage, x.shape, x.dtype, x.requires_grad)
    gradients = (Gradient(x, round_block(x.nbytes), moved=2 * x.nbytes),) if x.requires_grad else ()
    tape.ops.append(Op(f"{tape.scope}.mul_", (x.storage,), out, saves=True, gradients=gradients, moved=2 * x.nbytes))
    return out


def copy_into(tape: Tape, whole: Tensor, part: Tensor) -> Tensor:
    """`whole[...] = part`: in place; the backward (`CopySlices`) copies the gradient of the whole, and the slice's."""
    out = Tensor(whole.storage, whole.shape, whole.dtype, whole.requires_grad or part.requires_grad)
    full, slice_bytes = round_block(whole.nbytes), round_block(part.nbytes)
    gradients: list[Gradient] = []
    if whole.requires_grad:
        gradients = [Gradient(whole, full, moved=2 * full), Gradient(part, slice_bytes, scratch=slice_bytes)]
    elif part.requires_grad:
        gradients = [Gradient(part, slice_bytes, scratch=full, moved=2 * full)]
    reads = (whole.storage, part.storage)
    tape.ops.append(Op(f"{tape.scope}.copy_", reads, out, gradients=tuple(gradients), moved=2 * part.nbytes))
    return out
