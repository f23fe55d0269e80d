"""Mamba 2's scan over chunks as torch runs it: `mamba2_chunk_scan` of transformers 5.23 models/mamba2/modeling_mamba2.py.

The fallback where the package mamba-ssm is not installed: all in fp32, with a matrix of decays for every chunk and head. B
sequences, L tokens, T of a chunk, H heads of P columns, N columns of the state, G groups.

`torch.einsum` brings both factors into the order (batch, own, summed) for a product of batches, and copies those that do not lie
so (`sumproduct_pair` of aten/src/ATen/native/Linear.cpp).
"""

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.delta_rule import count_of, cumulative, exp, several_of
from tuneplan.planner.graph.matmul import batched
from tuneplan.planner.graph.tape import Gradient, Tape
from tuneplan.planner.graph.tensor import Size, Tensor, elements, round_block


def chunked_scan(
    tape: Tape, x: Tensor, dt: Tensor, rate: Tensor, b: Tensor, c: Tensor, skip: Tensor, dt_bias: Tensor, size: int
) -> Tensor:
    """The output `(B, L, H, P)` in fp32.

    Args:
        tape: where it is recorded.
        x: `(B, L, H, P)`.
        dt: of each head, `(B, L, H)`.
        rate: the decay, fp32 `(H,)`.
        b: what writes the state, `(B, L, G, N)`.
        c: what reads it, the same.
        skip: what passes the state by, `(H,)`.
        dt_bias: `(H,)`.
        size: tokens of a chunk.

    Raises:
        InputError: lengths that are an array.
    """
    batch, length, heads, columns = x.shape
    chunks = count_of(length, size)
    whole = chunks * size
    state = b.shape[-1]
    moved = pw.add(tape, dt, pw.cast(tape, dt_bias, dt.dtype))
    step = pw.clamp(tape, pw.activation(tape, moved, "softplus"))
    x = pw.cast(tape, x, "fp32")
    b, c = (pw.repeated(tape, pw.cast(tape, t, "fp32"), (batch, length, heads, state)) for t in (b, c))
    past = pw.multiply(tape, tape.view("unsqueeze", skip, (heads, 1)), tail_padded(tape, x, whole))
    x = pw.multiply(tape, x, tape.view("unsqueeze", pw.cast(tape, step, "fp32"), (batch, length, heads, 1)))
    decay = pw.multiply(tape, rate, pw.cast(tape, step, "fp32"))
    unpadded = (x, decay, b, c)
    x, decay, b, c = (tail_padded(tape, t, whole) for t in unpadded)
    tape.hold(*unpadded, moved, step)
    x, b, c = (tape.view("chunk", t, (batch, chunks, size, heads, t.shape[-1])) for t in (x, b, c))
    decay = tape.view("permute", decay, (batch, heads, chunks, size))
    total = cumulative(tape, decay)
    causal = exp(tape, segment_sum(tape, decay))
    several = several_of(batch)
    apart = not several and chunks == 1  # then heads alone make a batch, and lie as they should
    each = (apart, apart)
    scores = product(tape, c, b, (batch, chunks, heads), size, state, size, each)
    mixed = pw.multiply(tape, scores, tape.view("permute", causal, scores.shape))
    near = product(tape, mixed, x, (batch, chunks, heads), size, size, columns, (True, apart))
    last = pw.narrow(tape, total, (batch, heads, chunks, 1))
    left = exp(tape, pw.add(tape, last, total, "sub"))
    written = pw.multiply(tape, b, tape.view("permute", left, (batch, chunks, size, heads, 1)))
    states = product(tape, written, x, (batch, chunks, heads), state, size, columns, each)
    first = tape.record("zeros_like", (), tape.fresh((batch, 1, heads, columns, state), "fp32", False))
    joined = tape.fresh((batch, chunks + 1, heads, columns, state), "fp32", states.requires_grad)
    tape.record("cat", (first, states), joined, gradients=(Gradient(states, None, view=True),))
    ends = padded_front(tape, pw.narrow(tape, total, (batch, heads, chunks)))
    between = exp(tape, segment_sum(tape, ends))
    new = product(tape, between, joined, (batch, heads), chunks + 1, chunks + 1, columns * state, (True, not several))
    entering = pw.narrow(tape, new, (batch, chunks, heads, columns, state))
    reading = exp(tape, total)
    far = product(tape, c, entering, (batch, chunks, heads), size, state, columns, each)
    faded = pw.multiply(tape, far, tape.view("permute", reading, (batch, chunks, heads, size, 1)))
    out = pw.copy(tape, pw.add(tape, near, faded), "contiguous")
    out = pw.add(tape, tape.view("reshape", out, (batch, whole, heads, columns)), past)
    if whole != length:
        out = pw.narrow(tape, out, (batch, length, heads, columns))
    held = (x, b, c, decay, total, causal, scores, mixed, near, left, written, first, between, new, reading, far, faded, past)
    tape.hold(*held)
    return out


def product(
    tape: Tape,
    a: Tensor,
    b: Tensor,
    batch: tuple[Size, ...],
    rows: Size,
    inner: Size,
    columns: Size,
    lies: tuple[bool, bool] = (False, False),
) -> Tensor:
    """`torch.einsum` of two factors: `(*batch, rows, columns)`, seen in another order.

    `lies`: whether a factor lies in memory as the product of batches wants it; else it is copied.
    """
    count = elements(batch)
    first, second = (t if whole else pw.copy(tape, t) for t, whole in zip((a, b), lies, strict=True))
    left = tape.view("permute", first, (count, rows, inner))
    right = tape.view("permute", second, (count, inner, columns))
    out = batched(tape, left, right, (count, rows, columns), inner)
    return pw.transpose(tape, out, (*batch, rows, columns), copied=True)


def tail_padded(tape: Tape, x: Tensor, length: Size) -> Tensor:
    """`pad_tensor_by_size`: tokens `(B, L, ...)` padded to `length`, a copy even of nothing."""
    out = tape.fresh((x.shape[0], length, *x.shape[2:]), x.dtype, x.requires_grad)
    return tape.record("pad", (x,), out, gradients=(Gradient(x, round_block(x.nbytes)),))


def padded_front(tape: Tape, x: Tensor) -> Tensor:
    """`F.pad(x, (1, 0))`."""
    out = tape.fresh((*x.shape[:-1], x.shape[-1] + 1), x.dtype, x.requires_grad)
    return tape.record("pad", (x,), out, gradients=(Gradient(x, round_block(x.nbytes)),))


def segment_sum(tape: Tape, x: Tensor) -> Tensor:
    """`segment_sum`: sums over all stretches of the last dimension, `(..., T)` -> `(..., T, T)`, -inf above the diagonal."""
    size = x.shape[-1]
    shape = (*x.shape, size)
    spread = tape.view("expand", x, shape)
    if x.requires_grad:
        tape.ops[-1].gradients = (Gradient(x, round_block(x.nbytes)),)
    first, kept = _triangle(tape, size)
    filled = pw.masked_fill(tape, spread, first)
    summed = cumulative(tape, filled)
    second, also = _triangle(tape, size)
    tape.hold(kept)
    out = pw.masked_fill(tape, summed, second)
    tape.hold(filled, also)
    return out


def _triangle(tape: Tape, size: Size) -> tuple[Tensor, Tensor]:
    """What is filled, and the mask that it is the opposite of, which a variable holds."""
    ones = tape.record("ones", (), tape.fresh((size, size), "bool", False))
    mask = tape.record("tril", (ones,), tape.fresh((size, size), "bool", False))
    return tape.record("not", (mask,), tape.fresh((size, size), "bool", False)), mask
