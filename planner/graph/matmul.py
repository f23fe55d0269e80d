"""Matrix multiplications: linear layers, frozen quantized ones, embeddings and batched products.

One multiply-add counts as 2 FLOPs. Rules: torch 2.13 derivatives.yaml; bitsandbytes 0.50 `autograd/_functions.py`.
"""

from tuneplan.planner.graph.pointwise import cast
from tuneplan.planner.graph.tape import Gradient, Tape
from tuneplan.planner.graph.tensor import Size, Tensor, elements, round_block

ABSMAX_BLOCK = 64


def linear(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear(x, weight, bias)`: saves x if the weight is trained; a frozen weight costs the input's gradient alone.

    Shapes: x `(..., in)`, weight `(out, in)`, bias `(out,)`.
    """
    if tape.autocast:
        x, weight = cast(tape, x, tape.autocast), lowered(tape, weight)
        bias = None if bias is None else lowered(tape, bias)
    out_features, in_features = weight.shape
    trained = bias is not None and bias.requires_grad
    needs = x.requires_grad or weight.requires_grad or trained
    out = tape.fresh((*x.shape[:-1], out_features), x.dtype, needs)
    tokens = elements(x.shape[:-1])
    flops: Size = 2 * tokens * out_features * in_features
    moved = x.nbytes + weight.nbytes + out.nbytes
    back, across = (tokens, in_features, out_features), (out_features, in_features, tokens)
    gradients = [
        Gradient(x, round_block(x.nbytes), flops=flops, moved=moved, view=len(x.shape) > 2, dims=back),
        Gradient(weight, round_block(weight.nbytes), flops=flops, moved=moved, view=True, dims=across),
    ]
    inputs: tuple[Tensor, ...] = (x, weight)
    if bias is not None:
        gradients.append(Gradient(bias, round_block(bias.nbytes), moved=out.nbytes))
        inputs = (x, weight, bias)
    saved = ((x,) if weight.requires_grad else ()) + ((weight,) if x.requires_grad else ())
    dims = (tokens, out_features, in_features)
    return tape.record("linear", inputs, out, saved=saved, gradients=tuple(gradients), flops=flops, moved=moved, dims=dims)


def cut_patches(
    tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None, shape: tuple[Size, ...], kind: str = "conv2d"
) -> Tensor:
    """A convolution whose kernel and stride are a patch; saves its input if it is trained.

    Shapes: x any pixels, weight `(hidden, ...)` of a patch, result `shape`. Not counted: cuDNN's workspace.
    """
    if tape.autocast:
        x, weight = cast(tape, x, tape.autocast), lowered(tape, weight)
        bias = None if bias is None else lowered(tape, bias)
    trained = [t for t in (weight, bias) if t is not None]
    out = tape.fresh(shape, weight.dtype, any(t.requires_grad for t in trained))
    flops: Size = 2 * elements(out.shape) * elements(weight.shape[1:])
    moved = x.nbytes + weight.nbytes + out.nbytes
    gradients = tuple([Gradient(t, round_block(t.nbytes), flops=flops * (t is weight), moved=moved) for t in trained])
    return tape.record(kind, (x, *trained), out, saved=(x,), gradients=gradients, flops=flops, moved=moved)


def lowered(tape: Tape, weight: Tensor) -> Tensor:
    """A weight in autocast's dtype. Casts of trained fp32 weights themselves are kept until the forward ends.

    Mirrors `cached_cast` of aten/src/ATen/autocast_mode.cpp, torch 2.13.
    """
    out = cast(tape, weight, tape.autocast)
    if out is not weight and weight.name and weight.requires_grad and weight.dtype == "fp32":
        tape.cached.append(out.storage)
    return out


def linear_4bit(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None, compute_dtype: str, stored_bytes: Size) -> Tensor:
    """A frozen bitsandbytes 4-bit layer: the input is cast to the compute dtype, the result back to the input's dtype.

    Mirrors `Linear4bit.forward` and `MatMul4Bit` of bitsandbytes 0.50: no activation is saved; the weight is dequantized to
    the compute dtype for the product of the forward, with its scales in fp32 (`gemm_4bit` holds both), and again for the
    product of the backward, for which the scales are gone.

    Shapes: x `(..., in)`, weight `(out, in)`. `stored_bytes`: packed weight and its scales [bytes].
    """
    given = x.dtype
    narrow = cast(tape, x, compute_dtype)
    out_features, in_features = weight.shape
    out = tape.fresh((*x.shape[:-1], out_features), compute_dtype, x.requires_grad)
    tokens, count = elements(x.shape[:-1]), out_features * in_features
    flops: Size = 2 * tokens * count
    dense, scales = round_block(2 * count), scales_bytes(count)
    moved = stored_bytes + 2 * 2 * count + narrow.nbytes + out.nbytes
    above = scales - narrow.storage.nbytes  # scales and the gradient are not there at once
    gradient = Gradient(
        narrow,
        round_block(narrow.nbytes),
        scratch=dense + (above > 0) * above,
        flops=flops,
        moved=moved,
        decoded=count,
        dims=(tokens, in_features, out_features),
    )
    inputs = (narrow,) if bias is None else (narrow, bias)
    tape.record("linear_4bit", inputs, out, gradients=(gradient,), scratch=dense + scales, flops=flops, moved=moved)
    tape.ops[-1].decoded, tape.ops[-1].dims = count, (tokens, out_features, in_features)
    tape.hold(narrow)
    return cast(tape, out, given)


def linear_8bit(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None, pins: bool) -> Tensor:
    """A frozen LLM.int8 layer: the input is quantized row by row; it is kept as it came if it needs a gradient.

    `pins`: non-reentrant checkpointing cannot free the input, because the operator keeps it in its context and not among the
    saved tensors.

    Mirrors `MatMul8bitLt` of bitsandbytes 0.50 autograd/_functions.py and backends/cuda/ops.py with a threshold: the input in
    fp16, its magnitudes and a mask of outliers, then the 32-bit product and its fp16 copy; the backward makes the weight dense
    in the input's dtype. Not counted: the columns with outliers, which depend on values.

    Shapes: x `(..., in)`, weight `(out, in)`.
    """
    out_features, in_features = weight.shape
    tokens = elements(x.shape[:-1])
    out = tape.fresh((*x.shape[:-1], out_features), x.dtype, x.requires_grad)
    row = tokens * in_features
    quantized = round_block(row) + round_block(4 * tokens)
    first = quantized + round_block(row) + round_block(2 * row) * (1 if x.dtype == "fp16" else 2) - out.storage.nbytes
    product = round_block(4 * tokens * out_features)
    second = quantized + product + (0 if x.dtype == "fp16" else round_block(2 * tokens * out_features))
    flops: Size = 2 * tokens * out_features * in_features
    moved = x.nbytes + elements(weight.shape) + out.nbytes
    dense = round_block(weight.nbytes if x.dtype != "fp32" else 2 * weight.nbytes)
    back = (tokens, in_features, out_features)
    gradient = Gradient(x, round_block(x.nbytes), scratch=dense, flops=flops, moved=moved, dims=back)
    scratch = second + (first > second) * (first - second)
    inputs = (x,) if bias is None else (x, bias)
    saved = () if pins else (x,)
    tape.record("linear_8bit", inputs, out, saved=saved, gradients=(gradient,), scratch=scratch, flops=flops, moved=moved)
    tape.ops[-1].saves = False
    if pins and x.requires_grad:
        tape.ops[-1].pinned = (x.storage,)
    return out


def scales_bytes(count: Size) -> Size:
    """Bytes of the fp32 scales of `count` weights, which double quantization restores before each use."""
    return round_block(-(-count // ABSMAX_BLOCK) * 4)


def embedding(tape: Tape, shape: tuple[Size, ...], weight: Tensor) -> Tensor:
    """`F.embedding`: the gradient of the weight is dense (`embedding_dense_backward`).

    Shapes: result `shape` + `(hidden,)`, weight `(vocabulary, hidden)`.
    """
    out = tape.fresh((*shape, weight.shape[1]), weight.dtype, weight.requires_grad)
    gradient = Gradient(weight, round_block(weight.nbytes), moved=weight.nbytes + out.nbytes)
    return tape.record("embedding", (), out, gradients=(gradient,), moved=2 * out.nbytes)


def batched(tape: Tape, a: Tensor, b: Tensor, shape: tuple[Size, ...], inner: Size) -> Tensor:
    """A batched product of activations with `inner` as the summed dimension: each factor is saved for the other's gradient."""
    if tape.autocast:
        a, b = cast(tape, a, tape.autocast), cast(tape, b, tape.autocast)
    out = tape.fresh(shape, a.dtype, a.requires_grad or b.requires_grad)
    flops: Size = 2 * elements(shape) * inner
    moved = a.nbytes + b.nbytes + out.nbytes
    gradients = tuple([Gradient(t, round_block(t.nbytes), flops=flops, moved=moved) for t in (a, b)])
    saved = ((a,) if b.requires_grad else ()) + ((b,) if a.requires_grad else ())
    return tape.record("bmm", (a, b), out, saved=saved, gradients=gradients, flops=flops, moved=moved)
