"""Ops of a mixture of experts: choosing experts, gathering tokens for them, products with stacked weights.

Rules: torch 2.13 derivatives.yaml and FunctionsManual.cpp. T tokens, k experts a token, S = T * k rows.
"""

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.tape import Gradient, Op, Tape
from tuneplan.planner.graph.tensor import Size, Tensor, elements, round_block, tensor_bytes

WHERE_LAUNCHES = 6
"""Kernels of `torch.where`: a copy of the mask, a sum, the choice, its places; and two copies to the host, which waits."""
SELECT_LAUNCHES = 1
"""The copy to the host of which matrix is meant."""


def indices(tape: Tape, kind: str, shape: tuple[Size, ...], dtype: str = "int64", *read: Tensor) -> Tensor:
    """Whole numbers that an op makes: positions, an order, counts."""
    return tape.record(kind, read, tape.fresh(shape, dtype, False))


def topk(tape: Tape, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of the last dimension and where they were; the positions are saved.

    Shapes: x `(T, n)` -> values `(T, k)`, positions `(T, k)` int64.
    """
    shape = (*x.shape[:-1], k)
    values = tape.fresh(shape, x.dtype, x.requires_grad)
    positions = tape.fresh(shape, "int64", False)
    tape.record("topk_positions", (x,), positions, moved=0)
    tape.ops[-1].launches = 0
    gradient = Gradient(x, round_block(x.nbytes), moved=x.nbytes + values.nbytes)
    tape.record("topk", (x, positions), values, saved=(positions,), gradients=(gradient,))
    return values, positions


def gather(tape: Tape, x: Tensor, positions: Tensor, shape: tuple[Size, ...], kind: str = "index") -> Tensor:
    """`x[positions]` or `x.gather(...)`: a fresh tensor; the positions are saved, the gradient is put into zeros."""
    out = tape.fresh(shape, x.dtype, x.requires_grad)
    gradient = Gradient(x, round_block(x.nbytes), moved=2 * out.nbytes + x.nbytes)
    return tape.record(kind, (x, positions), out, saved=(positions,), gradients=(gradient,), moved=2 * out.nbytes)


def summed(tape: Tape, x: Tensor, shape: tuple[Size, ...], copied: bool = False) -> Tensor:
    """A sum over a dimension; its gradient is a view of the result's, or `copied` where what comes before needs it dense."""
    out = tape.fresh(shape, x.dtype, x.requires_grad)
    gradient = Gradient(x, round_block(x.nbytes) if copied else None, moved=x.nbytes if copied else 0)
    return tape.record("sum", (x,), out, gradients=(gradient,))


def divide_in_place(tape: Tape, x: Tensor, total: Tensor) -> Tensor:
    """`x /= total`, broadcast: a copy of x is saved for the gradient of the divisor."""
    before = pw.copy(tape, pw.detached(x)) if total.requires_grad else x
    needs = x.requires_grad or total.requires_grad
    out = Tensor(x.storage, x.shape, x.dtype, needs)
    full = round_block(x.nbytes)
    gradients = (Gradient(x, full), Gradient(total, round_block(total.nbytes), scratch=3 * full)) if needs else ()
    saved = (before.storage, total.storage) if needs else ()
    reads = (x.storage, before.storage, total.storage)
    tape.ops.append(Op(f"{tape.scope}.div_", reads, out, saved=saved, saves=needs, gradients=gradients, moved=2 * x.nbytes))
    return out


def masked_fill(tape: Tape, x: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    """`x.masked_fill(~given.bool(), value)`; also the mask, which is saved."""
    first = tape.record("bool", (given,), tape.fresh(x.shape, "bool", False))
    mask = tape.record("not", (first,), tape.fresh(x.shape, "bool", False))
    out = tape.fresh(x.shape, x.dtype, x.requires_grad)
    tape.record("masked_fill", (x, mask), out, saved=(mask,), gradients=(Gradient(x, round_block(x.nbytes)),))
    return out, mask


def grouped_linear(tape: Tape, x: Tensor, weight: Tensor, offsets: Tensor, out_features: int, touched: Size) -> Tensor:
    """`torch.nn.functional.grouped_mm`: each expert's rows times its matrix; with a trained weight a gradient of all experts.

    Args:
        tape: where it is recorded.
        x: rows `(S, in_features)`, sorted by expert.
        weight: `(experts, ..., ...)`, either way round.
        offsets: where each expert's rows end, saved.
        out_features: columns of the result.
        touched: bytes of the matrices of experts that have rows.
    """
    x = pw.cast(tape, x, weight.dtype)
    rows, in_features = x.shape
    needs = x.requires_grad or weight.requires_grad
    out = tape.fresh((rows, out_features), x.dtype, needs)
    flops: Size = 2 * rows * in_features * out_features
    moved = x.nbytes + touched + out.nbytes
    gradients = (
        Gradient(weight, round_block(weight.nbytes), flops=flops, moved=x.nbytes + weight.nbytes + out.nbytes),
        Gradient(x, round_block(x.nbytes), flops=flops, moved=moved),
    )
    saved = ((x,) if weight.requires_grad else ()) + ((weight,) if x.requires_grad else ()) + (offsets,)
    read = (x, weight, offsets)
    return tape.record("grouped_mm", read, out, saved=saved, gradients=gradients, flops=flops, moved=moved)


def batched_linear(tape: Tape, x: Tensor, weights: Tensor, out_features: int) -> Tensor:
    """Each row times its own matrix (`torch.bmm`). Shapes: x `(S, in)`, weights `(S, ..., ...)` -> `(S, out_features)`."""
    rows, in_features = x.shape
    needs = x.requires_grad or weights.requires_grad
    out = tape.fresh((rows, out_features), x.dtype, needs)
    flops: Size = 2 * rows * in_features * out_features
    moved = x.nbytes + weights.nbytes + out.nbytes
    gradients = tuple([Gradient(t, round_block(t.nbytes), flops=flops, moved=moved) for t in (weights, x)])
    saved = ((x,) if weights.requires_grad else ()) + ((weights,) if x.requires_grad else ())
    return tape.record("bmm", (x, weights), out, saved=saved, gradients=gradients, flops=flops, moved=moved)


def places(tape: Tape, mask: Tensor, rows: Size) -> Tensor:
    """`torch.where(mask)`: where the `rows` ones of a transposed mask are, `(rows, 2)`; the mask is copied to be searched."""
    out = tape.fresh((rows, 2), "int64", False)
    one = tensor_bytes(mask.shape[:-1], "int64")
    tape.record("where", (mask,), out, scratch=one - out.storage.nbytes, moved=3 * one)
    tape.ops[-1].launches = WHERE_LAUNCHES
    return out


def select(tape: Tape, weight: Tensor, shape: tuple[Size, ...], first: bool, found: Size) -> Tensor:
    """One of the matrices (or biases) that a stacked weight holds: a view; its gradient is put into zeros of the whole stack.

    Args:
        tape: where it is recorded.
        weight: the stack.
        shape: of what is selected.
        first: nothing is added to its gradient yet, which is the first of those that come (the last selected).
        found: 1, or 0 where nothing selects it.
    """
    out = Tensor(weight.storage, shape, weight.dtype, weight.requires_grad)
    added = 0 if first or not weight.name else 3 * weight.nbytes
    full = round_block(weight.nbytes) * found
    gradients = (Gradient(weight, full, moved=weight.nbytes + 2 * out.nbytes + added),) if weight.requires_grad else ()
    tape.ops.append(Op(f"{tape.scope}.select", (weight.storage,), out, gradients=gradients, launches=SELECT_LAUNCHES))
    return out


def add_rows(tape: Tape, total: Tensor, x: Tensor, where: Tensor) -> Tensor:
    """`total.index_add_(0, where, x)`: in place; positions and `x`, for its shape, are saved; its gradient is gathered."""
    needs = total.requires_grad or x.requires_grad
    out = Tensor(total.storage, total.shape, total.dtype, needs)
    given = (Gradient(total, None), Gradient(x, round_block(x.nbytes), moved=2 * x.nbytes))
    gradients = tuple([gradient for gradient in given if gradient.of.requires_grad])
    saved = (where.storage, x.storage) if x.requires_grad else ()
    reads = (total.storage, x.storage, where.storage)
    tape.ops.append(
        Op(f"{tape.scope}.index_add_", reads, out, saved=saved, saves=bool(saved), gradients=gradients, moved=3 * x.nbytes)
    )
    return out


def rows_of(x: Tensor) -> Size:
    """Tokens of `(..., hidden)`."""
    return elements(x.shape[:-1])
