"""The gated delta rule in chunks, as torch runs it: `torch_chunk_gated_delta_rule` of transformers 5.23.

models/qwen3_5/modeling_qwen3_5.py, the fallback where the package flash-linear-attention is not installed. In fp32, with a
state for every chunk and a loop over them. B sequences, H value heads, L tokens, C of a chunk, K and V columns of a head.
"""

from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph import routing as rt
from tuneplan.planner.graph.in_place import copy_into
from tuneplan.planner.graph.matmul import batched
from tuneplan.planner.graph.tape import Gradient, Tape
from tuneplan.planner.graph.tensor import Size, Tensor, round_block, tensor_bytes

CHUNK = 64


def chunked_delta_rule(tape: Tape, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
    """The output `(B, L, H, V)` in the dtype of the queries.

    Args:
        tape: where it is recorded.
        q: queries `(B, L, key heads, K)`.
        k: keys, the same.
        v: values `(B, L, H, V)`.
        decay: of the state, in log space, fp32 `(B, L, H)`.
        beta: how much of a new value is written, `(B, L, H)`.

    Raises:
        InputError: lengths that are an array; the loop has a number of turns.
    """
    batch, length, key_heads, columns = k.shape
    heads, width = v.shape[2:]
    size = chunk_of(length, CHUNK)
    chunks = count_of(length, size)
    given = q.dtype
    # fp32 is not copied to be contiguous, and a padding of nothing keeps the layout: products of batches then copy their factors
    scattered = given == "fp32" and chunks * size == length
    several = several_of(batch)
    apart, alone = scattered and (several or chunks > 1), scattered and several and key_heads != heads
    q, k, v, beta, decay = _prepared(tape, (q, k, v, beta, decay), heads, chunks * size)
    v_beta, k_beta = pw.multiply(tape, v, _column(tape, beta)), pw.multiply(tape, k, _column(tape, beta))
    value = v
    q, k, k_beta, v_beta = (tape.view("chunk", t, (batch, heads, chunks, size, t.shape[-1])) for t in (q, k, k_beta, v_beta))
    decay = tape.view("chunk", decay, (batch, heads, chunks, size))
    total = cumulative(tape, decay)
    pairs = _pairwise(tape, total)
    square = (batch, heads, chunks, size, size)
    system = pw.multiply(tape, batched(tape, _packed(tape, k_beta, apart), _packed(tape, k, apart), square, columns), pairs)
    inside = pw.multiply(tape, batched(tape, _packed(tape, q, apart), _packed(tape, k, apart), square, columns), pairs)
    decayed = pw.multiply(tape, k_beta, _column(tape, exp(tape, total)))
    new, reads = solve(tape, system, v_beta), solve(tape, system, decayed)
    out = _across(tape, (new, reads, q, k, inside, total), alone)
    out = tape.view("join", out, (batch, heads, chunks * size, width))
    if chunks * size != length:
        out = pw.narrow(tape, out, (batch, heads, length, width))
    result = tape.fresh((batch, length, heads, width), given, out.requires_grad)
    wide = None if given == "fp32" else round_block(out.nbytes)
    tape.record("to", (out,), result, gradients=(Gradient(out, wide, view=wide is None),))
    tape.hold(value, k_beta, v_beta, decay, beta, total, pairs, system, inside, decayed, new, reads)
    return result


def _prepared(tape: Tape, tensors: tuple[Tensor, ...], heads: Size, whole: int) -> tuple[Tensor, ...]:
    """Queries, keys, values, beta and decay `(B, H, L, ...)` in fp32, repeated for each head, normed, padded to whole chunks."""
    q, k, *rest = tensors
    batch, length, key_heads, columns = k.shape
    if key_heads != heads:
        q, k = (pw.repeated(tape, t, (batch, length, heads, columns)) for t in (q, k))
    wide = [widened(tape, t) for t in (q, k, *rest)]
    tape.hold(q, k)
    units = [_unit(tape, t) for t in wide[:2]]
    vectors = [pw.scale(tape, units[0]), units[1], wide[2]]
    full = [padded(tape, t, whole) for t in vectors]
    tape.hold(*vectors)
    full += [padded(tape, t, whole) for t in wide[3:]]
    tape.hold(*wide[3:])
    return tuple(full)


def _across(tape: Tape, tensors: tuple[Tensor, ...], alone: bool) -> Tensor:
    """The loop over chunks, from the state behind one to that behind the next: the output `(B, H, chunks, C, V)`.

    `alone`: what a chunk has of queries and keys is copied for a product of batches.
    """
    new, reads, given_q, given_k, inside, total = tensors
    batch, heads, chunks, size, width = new.shape
    columns = given_k.shape[-1]
    rows, square = (batch, heads, size, width), (batch, heads, columns, width)
    state = tape.record("zeros", (), tape.fresh(square, "fp32", False))
    out = tape.record("zeros_like", (), tape.fresh(new.shape, "fp32", False))
    q = pw.multiply(tape, given_q, _column(tape, exp(tape, total)))
    tape.hold(given_q)
    last = pw.narrow(tape, total, (batch, heads, chunks, 1))
    k = pw.multiply(tape, given_k, _column(tape, exp(tape, pw.add(tape, last, total, "sub"))))
    tape.hold(given_k)
    ends = exp(tape, pw.narrow(tape, total, (batch, heads, chunks)))
    held: tuple[Tensor, ...] = ()
    unused: tuple[Tensor, ...] = ()
    for turn in range(int(chunks)):
        own = pw.add(tape, _at(tape, new), batched(tape, _at(tape, reads), state, rows, columns), "sub")
        inner = batched(tape, _packed(tape, _at(tape, q), alone), state, rows, columns)
        tape.hold(*held)
        held = (inner,)
        seen = batched(tape, _at(tape, inside), own, rows, size)
        out = copy_into(tape, out, pw.add(tape, inner, seen))
        part = _packed(tape, _at(tape, k), alone)
        end = tape.view("unsqueeze", _at(tape, ends), (batch, heads, 1, 1))
        if turn + 1 == chunks:  # nobody asks for the last state, so its graph goes with it
            unused = _last_state(tape, state, end, part, own)
        else:
            state = pw.add(tape, pw.multiply(tape, state, end), batched(tape, part, own, square, size))
    tape.discard(*unused)
    tape.hold(q, k, state, ends, *held)
    return out


def chunk_of(length: Size, size: int) -> int:
    """Tokens of a chunk: one where one token is decoded, which its own recurrent form does without padding."""
    return 1 if isinstance(length, int) and length == 1 else size


def count_of(length: Size, size: int) -> int:
    """How many chunks a sequence has. Raises InputError for an array of lengths."""
    if not isinstance(length, int):
        raise InputError("a loop over chunks of a sequence has one number of turns; ask for one length after the other")
    return -(-length // size)


def widened(tape: Tape, x: Tensor) -> Tensor:
    """`x.transpose(1, 2).to(float32, contiguous)`: `(B, L, H, ...)` -> `(B, H, L, ...)`, a view of what is fp32 already."""
    batch, length, heads, *rest = x.shape
    shape = (batch, heads, length, *rest)
    if x.dtype == "fp32":
        return tape.view("transpose", x, shape)
    out = tape.fresh(shape, "fp32", x.requires_grad)
    return tape.record("to", (x,), out, gradients=(Gradient(x, round_block(x.nbytes)),))


def padded(tape: Tape, x: Tensor, length: Size) -> Tensor:
    """`F.pad` of the tokens `(B, H, L, ...)` to `length`: a copy, even of nothing; the gradient is cut to a copy."""
    batch, heads, _, *rest = x.shape
    out = tape.fresh((batch, heads, length, *rest), x.dtype, x.requires_grad)
    return tape.record("pad", (x,), out, gradients=(Gradient(x, round_block(x.nbytes)),))


def cumulative(tape: Tape, x: Tensor) -> Tensor:
    """`x.cumsum(-1)`: the backward is a sum from behind, with the flipped gradient and its sum beside it (`cumsum_backward`)."""
    full = round_block(x.nbytes)
    out = tape.fresh(x.shape, x.dtype, x.requires_grad)
    return tape.record("cumsum", (x,), out, gradients=(Gradient(x, full, scratch=2 * full),))


def exp(tape: Tape, x: Tensor) -> Tensor:
    """`x.exp()`: saves its output."""
    return pw.tanh(tape, x, "exp")


def solve(tape: Tape, a: Tensor, b: Tensor) -> Tensor:
    """`torch.linalg.solve_triangular(a, b)`: saves a and its output; the gradient of a is made from that of b.

    Mirrors `linalg_solve_triangular_backward` of torch 2.13 FunctionsManual.cpp.
    """
    out = tape.fresh(b.shape, b.dtype, a.requires_grad or b.requires_grad)
    size = round_block(a.nbytes)
    flops: Size = a.numel * b.shape[-1]
    gradients = (Gradient(b, round_block(b.nbytes), flops=flops), Gradient(a, size, scratch=size, flops=2 * flops))
    return tape.record("solve_triangular", (a, b), out, saved=(a, out), gradients=gradients, flops=flops)


def _unit(tape: Tape, x: Tensor) -> Tensor:
    """`l2norm`: x over its length."""
    squares = pw.multiply(tape, x, x)
    length = rt.summed(tape, squares, (*x.shape[:-1], 1))
    root = pw.tanh(tape, pw.shift(tape, length), "rsqrt")
    tape.ops[-1].gradients = tuple(
        [Gradient(g.of, g.nbytes, scratch=2 * round_block(length.nbytes)) for g in tape.ops[-1].gradients]
    )
    out = pw.multiply(tape, x, root)
    tape.hold(x, root)
    return out


def several_of(batch: Size) -> bool:
    """Whether there are several sequences (of an array: in any configuration)."""
    more: Any = batch > 1
    return more if isinstance(more, bool) else bool(more.any())


def _packed(tape: Tape, x: Tensor, copied: bool) -> Tensor:
    return pw.copy(tape, x) if copied else x


def _last_state(tape: Tape, state: Tensor, end: Tensor, part: Tensor, own: Tensor) -> tuple[Tensor, ...]:
    """The state behind the last chunk; gives what its graph saved."""
    batch, heads, columns, width = state.shape
    kept = pw.multiply(tape, pw.detached(state), pw.detached(end))
    factors = ((state,) if end.requires_grad else ()) + ((end,) if state.requires_grad else ())
    tape.save(*factors)
    product = batched(tape, pw.detached(part), pw.detached(own), (batch, heads, columns, width), own.shape[2])
    rows = ((part,) if own.requires_grad else ()) + ((own,) if part.requires_grad else ())
    tape.save(*rows)
    pw.add(tape, kept, product)
    return (*factors, *rows)


def _column(tape: Tape, x: Tensor) -> Tensor:
    return tape.view("unsqueeze", x, (*x.shape, 1))


def _at(tape: Tape, x: Tensor) -> Tensor:
    """What a chunk has of `(B, H, chunks, ...)`: a view, whose gradient is put into zeros."""
    return pw.narrow(tape, x, (*x.shape[:2], *x.shape[3:]))


def _pairwise(tape: Tape, total: Tensor) -> Tensor:
    """How much a state decays between two tokens of a chunk: `(B, H, chunks, C, C)`."""
    shape = (*total.shape, total.shape[-1])
    full = tensor_bytes(shape, "fp32")
    small = round_block(total.nbytes)
    mask = tape.record("triu", (), tape.fresh((total.shape[-1],) * 2, "bool", False))
    difference = tape.fresh(shape, "fp32", total.requires_grad)
    gradients = (Gradient(total, small), Gradient(total, small, scratch=full - small))
    tape.record("sub", (total,), difference, gradients=gradients)
    out = exp(tape, pw.masked_fill(tape, difference, mask))
    tape.hold(mask)
    return out
