"""Written-out attention with a learned sink: one more column of scores for each head, dropped after the softmax.

Mirrors `eager_attention_forward` of transformers 5.23 models/gpt_oss/modeling_gpt_oss.py.
"""

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.attention import repeat_heads
from tuneplan.planner.graph.matmul import batched
from tuneplan.planner.graph.tape import Gradient, Tape
from tuneplan.planner.graph.tensor import Tensor, round_block


def eager_with_sinks(
    tape: Tape, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, sinks: Tensor, dropout: float, packed: bool = False
) -> tuple[Tensor, Tensor]:
    """The output `(batch, length, heads, head_dim)` and the attention weights, which the layer's Python code holds.

    Args:
        tape: where it is recorded.
        q: `(batch, heads, length, head_dim)`.
        k: `(batch, key_heads, length, head_dim)`.
        v: the same.
        mask: added to the scores.
        sinks: `(heads,)`.
        dropout: of the weights.
        packed: keys and values lie contiguously (they come from a cache).
    """
    batch, heads, length, head_dim = q.shape
    keys, values = repeat_heads(tape, k, heads, lazy=True), repeat_heads(tape, v, heads, lazy=True)
    query = pw.copy(tape, q)
    factor = pw.copy(tape, keys) if keys.storage is k.storage and not (packed and keys is k) else keys
    scores = pw.scale(tape, batched(tape, query, factor, (batch, heads, length, k.shape[2]), head_dim))
    scores = pw.add(tape, scores, mask)
    joined_shape = (batch, heads, length, k.shape[2] + 1)
    spread = tape.view("expand", sinks, (batch, heads, length, 1))
    if sinks.requires_grad:
        tape.ops[-1].gradients = (Gradient(sinks, round_block(sinks.nbytes)),)
    joined = tape.fresh(joined_shape, scores.dtype, scores.requires_grad or sinks.requires_grad)
    tape.record("cat", (scores, spread), joined, gradients=(Gradient(scores, None, view=True), Gradient(spread, None)))
    highest = tape.fresh((batch, heads, length, 1), joined.dtype, joined.requires_grad)
    places = tape.record("max_positions", (joined,), tape.fresh(highest.shape, "int64", False), moved=0)
    tape.ops[-1].launches = 0
    full = round_block(joined.nbytes)
    tape.record("max", (joined, places), highest, saved=(places,), gradients=(Gradient(joined, full, moved=full),))
    lowered = tape.fresh(joined_shape, joined.dtype, joined.requires_grad)
    gradients = (Gradient(joined, None), Gradient(highest, round_block(highest.nbytes), scratch=full))
    tape.record("sub", (joined, highest), lowered, gradients=gradients)
    tape.hold(joined, highest)
    soft = pw.softmax(tape, lowered)
    kept = pw.narrow(tape, soft, (batch, heads, length, k.shape[2]))
    weights = pw.dropout(tape, kept, dropout)
    tape.hold(scores)
    factor = pw.copy(tape, values) if values.storage is v.storage and not (packed and values is v) else values
    mixed = batched(tape, weights, factor, q.shape, k.shape[2])
    out = tape.fresh((batch, length, heads, head_dim), mixed.dtype, mixed.requires_grad)
    copied = Gradient(mixed, round_block(mixed.nbytes), moved=2 * mixed.nbytes)
    tape.record("contiguous", (mixed,), out, gradients=(copied,))
    tape.hold(q, k, v, keys, values, lowered, soft)
    return out, weights
