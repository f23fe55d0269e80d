"""Attention between projected queries, keys and values, one function for each kernel that can run.

Shapes: q `(batch, heads, length, head_dim)`; k and v have `key_heads` heads, and may be longer than q by a prefix.
Mirrors transformers 5.23 `eager_attention_forward` and `sdpa_attention_forward`, and the kernels behind
`scaled_dot_product_attention` of torch 2.13.
"""

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import batched
from tuneplan.planner.graph.tape import Gradient, Tape
from tuneplan.planner.graph.tensor import Size, Tensor, round_block, tensor_bytes


def repeat_heads(tape: Tape, x: Tensor, heads: int, lazy: bool = False) -> Tensor:
    """`repeat_kv`: each key/value head copied for its query heads; the gradient is summed back over the copies.

    `lazy`: a single head is repeated as a view (`expand` and `reshape`), which the next product copies.
    """
    batch, key_heads, length, head_dim = x.shape
    if key_heads == heads:
        return x
    if lazy and key_heads == 1:
        view = tape.view("repeat_kv", x, (batch, heads, length, head_dim))
        tape.ops[-1].gradients = (Gradient(x, round_block(x.nbytes)),) if x.requires_grad else ()
        return view
    out = tape.fresh((batch, heads, length, head_dim), x.dtype, x.requires_grad)
    gradient = Gradient(x, round_block(x.nbytes), moved=out.nbytes + x.nbytes)
    return tape.record("repeat_kv", (x,), out, gradients=(gradient,))


def eager(
    tape: Tape,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout: float,
    packed: bool = False,
    softcap: bool = False,
    wide: bool = True,
    second: Tensor | None = None,
    one_by_one: bool = False,
) -> tuple[Tensor, Tensor]:
    """Written-out attention; with its softmax in fp32 (`wide`) it keeps heads x length^2 values three times over.

    `packed`: keys and values lie contiguously (they come from a cache), so that the products need no copy of them.
    `softcap`: scores are capped before the mask.
    `wide`: the softmax runs in fp32, as decoders write it, and not in the queries' dtype, as BERT and T5 do.
    `second`: added to the scores after the mask.
    `one_by_one`: it is called for each sequence of the batch, whose products need no copies; what is let go within a call is
    counted as if they were one.
    Returns the output `(batch, length, heads, head_dim)` and the attention weights, which the layer's Python code holds.
    """
    batch, heads, length, head_dim = q.shape
    keys, values = repeat_heads(tape, k, heads, lazy=True), repeat_heads(tape, v, heads, lazy=True)
    query = q if one_by_one else pw.copy(tape, q)
    packed = packed or one_by_one
    lazy = heads != k.shape[1] and keys.storage is k.storage
    factor = pw.copy(tape, keys) if lazy or (keys is k and not packed) else keys
    scores = batched(tape, query, factor, (batch, heads, length, k.shape[2]), head_dim)
    scores = pw.scale(tape, scores)
    if softcap:
        scores = pw.softcap(tape, scores)
    if mask is not None:
        scores = pw.add(tape, scores, mask)
    if second is not None:
        scores = pw.add(tape, scores, second)
    soft = pw.softmax(tape, pw.cast(tape, scores, "fp32")) if wide else pw.softmax_by_default(tape, scores)
    tape.hold(scores)
    weights = pw.dropout(tape, pw.cast(tape, soft, q.dtype) if wide else soft, dropout)
    factor = pw.copy(tape, values) if lazy or (values is v and not packed) else values
    columns = v.shape[-1]
    mixed = batched(tape, weights, factor, (batch, heads, length, columns), k.shape[2])
    joined = tape.fresh((batch, length, heads, columns), mixed.dtype, mixed.requires_grad)
    copied = Gradient(mixed, round_block(mixed.nbytes), moved=2 * mixed.nbytes)
    tape.record("contiguous", (mixed,), joined, gradients=(copied,))
    tape.hold(q, k, v, keys, values)
    return joined, weights


def math(tape: Tape, q: Tensor, k: Tensor, v: Tensor, dropout: float, packed: bool = False) -> Tensor:
    """PyTorch's unfused fallback, `_scaled_dot_product_attention_math`: fp32, and keeps heads x length^2 of it."""
    q, k, v = lowered(tape, q, k, v)
    batch, heads, length, head_dim = q.shape
    dtype = q.dtype
    autocast, tape.autocast = tape.autocast, ""  # the kernel's own products are not cast
    wide = [pw.cast(tape, t, "fp32") for t in (q, k, v)]
    query = pw.scale(tape, wide[0])
    mask = tape.fresh((length, k.shape[2]), "fp32", False)
    tape.record("causal_mask", (), mask, scratch=2 * tensor_bytes((length, k.shape[2]), "bool"))
    grouped = k.shape[1] != heads
    keys, values = repeat_heads(tape, wide[1], heads), repeat_heads(tape, wide[2], heads)
    scaled = pw.scale(tape, keys)
    scaled = scaled if grouped or packed else pw.copy(tape, scaled)
    scores = batched(tape, pw.copy(tape, query), scaled, (batch, heads, length, k.shape[2]), head_dim)
    weights = pw.dropout(tape, pw.softmax(tape, pw.add(tape, scores, mask)), dropout)
    mixed = batched(tape, weights, values if grouped or packed else pw.copy(tape, values), q.shape, k.shape[2])
    tape.autocast = autocast
    tape.hold(*wide, query, keys, values, weights)
    out = pw.cast(tape, mixed, dtype)
    joined = tape.fresh((batch, length, heads, head_dim), dtype, out.requires_grad)
    tape.record("contiguous", (out,), joined, gradients=(Gradient(out, None),))
    tape.hold(q, k, v, mask)
    return joined


def flash(tape: Tape, q: Tensor, k: Tensor, v: Tensor, causal: bool = True, one_by_one: bool = False) -> Tensor:
    """FlashAttention-2 (also the memory of cuDNN's kernel): saves q, k, v, the output and a fp32 log-sum-exp.

    The backward holds a fp32 accumulator of dQ with rows rounded to 128 and columns to 32 and, with grouped heads, dK and dV
    for every query head (`mha_bwd`, flash_api.cpp). `one_by_one`: the kernel is called for each sequence of the batch.
    """
    batch, heads, length, head_dim = q.shape
    batch = 1 if one_by_one else batch
    rows, columns = _up(length, 128), _up(head_dim, 32)
    scratch = tensor_bytes((batch, heads, rows), "fp32") + tensor_bytes((batch, rows, heads, columns), "fp32")
    if k.shape[1] != heads:
        scratch = scratch + 2 * tensor_bytes((batch, k.shape[2], heads, head_dim), k.dtype)
    return _fused(tape, "flash_attention", q, k, v, length, scratch, causal=causal)


def efficient(
    tape: Tape, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = True, one_by_one: bool = False
) -> Tensor:
    """The memory-efficient (CUTLASS) kernel: takes fp32, has no grouped heads, so keys and values are repeated first.

    Below fp32 the backward accumulates dQ in a fp32 workspace (`_efficient_attention_backward`). A boolean mask becomes a bias in
    the queries' dtype, which every layer keeps for its backward (`convert_boolean_attn_mask`, attention.cpp). `one_by_one`: see
    `flash`.
    """
    q, k, v = lowered(tape, q, k, v)
    batch, heads, length, head_dim = q.shape
    batch = 1 if one_by_one else batch
    keys, values = repeat_heads(tape, k, heads, lazy=True), repeat_heads(tape, v, heads, lazy=True)
    scratch = tensor_bytes((batch, heads, length), "fp32")
    if q.dtype != "fp32":
        scratch = scratch + tensor_bytes((batch, heads, length, head_dim), "fp32")
    bias = mask
    if mask is not None and mask.dtype == "bool":
        bias = tape.fresh(mask.shape, q.dtype, False)
        tape.record("mask_to_bias", (mask,), bias, scratch=round_block(mask.nbytes))
    out = _fused(tape, "efficient_attention", q, keys, values, _up(length, 32), scratch, bias, causal)
    tape.hold(k, v)
    return out


def efficient_biased(
    tape: Tape, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, causal: bool, contiguous: bool, given: Tensor | None = None
) -> Tensor:
    """The memory-efficient kernel with a bias `(1, heads, length, keys)` of the scores, as T5 has it.

    Mirrors `create_position_bias_mask` of transformers 5.23 (every layer makes a copy of a bias that is not `contiguous`, and a
    masked one where it is causal) and `_efficient_attention_backward`: a trained bias gets a gradient for every sequence, with
    its rows rounded to 16, which is then summed.

    `given`: a mask `(batch, 1, length, keys)`, with which the bias is one for each sequence.
    """
    q, k, v = lowered(tape, q, k, v)
    batch, heads, length, head_dim = q.shape
    keys = k.shape[2]
    scratch = tensor_bytes((batch, heads, length), "fp32")
    if q.dtype != "fp32":
        scratch = scratch + tensor_bytes((batch, heads, length, head_dim), "fp32")
    mask = bias
    if given is not None:
        mask = tape.fresh((batch, heads, length, keys), bias.dtype, bias.requires_grad)
        gradient = Gradient(bias, round_block(bias.nbytes), scratch=round_block(mask.nbytes))
        tape.record("where", (bias, given), mask, saved=(given,), gradients=(gradient,))
    elif causal:
        seen = tape.fresh((1, 1, length, keys), "bool", False)
        tape.record("causal_mask", (), seen)
        mask = tape.fresh(bias.shape, bias.dtype, bias.requires_grad)
        gradient = Gradient(bias, round_block(bias.nbytes))
        tape.record("where", (bias, seen), mask, saved=(seen,), gradients=(gradient,))
    own = mask
    if not contiguous:
        own = tape.fresh(mask.shape, bias.dtype, bias.requires_grad)
        tape.record("contiguous", (mask,), own, gradients=(Gradient(mask, None),))
    (own,) = lowered(tape, own)
    out = _fused(tape, "efficient_attention", q, k, v, _up(length, 32), scratch, own, causal)
    if own.requires_grad:
        wide = tensor_bytes((batch, heads, length, _up(keys, 16)), bias.dtype)
        op = tape.ops[-1]
        whole = own.shape[0] == batch if isinstance(batch, int) else given is not None
        passed = Gradient(own, wide) if whole else Gradient(own, round_block(own.nbytes), scratch=wide)
        op.gradients = (*op.gradients, passed)
    tape.hold(k, v)
    return out


def lowered(tape: Tape, *inputs: Tensor) -> tuple[Tensor, ...]:
    """What autocast makes of the inputs of `scaled_dot_product_attention`, a mask of numbers among them."""
    return tuple([pw.cast(tape, x, tape.autocast) for x in inputs]) if tape.autocast else inputs


def _fused(
    tape: Tape,
    kind: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse_length: Size,
    scratch: Size,
    bias: Tensor | None = None,
    causal: bool = True,
) -> Tensor:
    batch, heads, length, head_dim = q.shape
    columns = v.shape[-1]
    needs = q.requires_grad or k.requires_grad or v.requires_grad
    lse = tape.fresh((batch, heads, lse_length), "fp32", False)
    out = tape.fresh((batch, length, heads, columns), q.dtype, needs)
    # Causal: half of the score matrix is computed; the backward does five products for the forward's two.
    flops: Size = 2 * batch * heads * length * k.shape[2] * (head_dim + columns) // (2 if causal else 1)
    moved = 2 * (q.nbytes + k.nbytes)
    tape.record("log_sum_exp", (), lse, moved=0)
    tape.ops[-1].launches = 0
    gradients = [
        Gradient(q, round_block(q.nbytes), flops=5 * flops // 2, moved=3 * moved, dims=(length, k.shape[2], head_dim)),
        Gradient(k, round_block(k.nbytes), moved=0),
        Gradient(v, round_block(v.nbytes), moved=0),
    ]
    tape.record(
        kind,
        (q, k, v, lse) if bias is None else (q, k, v, lse, bias),
        out,
        saved=(q, k, v, out, lse) if bias is None else (q, k, v, out, lse, bias),
        gradients=tuple(gradients),
        flops=flops,
        moved=moved,
        workspace=scratch,
        dims=(length, k.shape[2], head_dim),
    )
    return out


def _up(value: Size, multiple: int) -> Size:
    return -(-value // multiple) * multiple
