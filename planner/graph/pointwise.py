"""Elementwise operators, casts and copies, with the tensors autograd saves and the gradients it makes.

Rules: torch 2.13 tools/autograd/derivatives.yaml. Temporaries of one C++ expression live until its end.
"""

from tuneplan.planner.graph.tape import Gradient, Op, Tape
from tuneplan.planner.graph.tensor import Size, Storage, Tensor, round_block, same_shape, tensor_bytes


def cast(tape: Tape, x: Tensor, dtype: str) -> Tensor:
    """`x.to(dtype)`: the same tensor if nothing changes; saves nothing; the gradient is cast back."""
    if x.dtype == dtype:
        return x
    out = tape.fresh(x.shape, dtype, x.requires_grad)
    return tape.record("to", (x,), out, gradients=(Gradient(x, round_block(x.nbytes), moved=x.nbytes + out.nbytes),))


def copy(tape: Tape, x: Tensor, kind: str = "clone") -> Tensor:
    """A contiguous copy (`clone`, `contiguous`, a `reshape` that cannot be a view); the gradient passes through."""
    out = tape.fresh(x.shape, x.dtype, x.requires_grad)
    return tape.record(kind, (x,), out, gradients=(Gradient(x, None),))


def detached(x: Tensor) -> Tensor:
    """`x.detach()`: the same storage without a gradient."""
    return Tensor(x.storage, x.shape, x.dtype, False, x.name)


def add(tape: Tape, a: Tensor, b: Tensor, kind: str = "add") -> Tensor:
    """`a + b` or `a - b`, `b` of the same shape or broadcast; saves nothing.

    Where the dtypes differ the result has the wider one, and the gradient of the narrower is cast; that of a broadcast
    term is summed.
    """
    dtype = a.dtype if a.dtype in {b.dtype, "fp32"} else b.dtype
    shape = a.shape if len(a.shape) >= len(b.shape) else b.shape
    out = tape.fresh(shape, dtype, a.requires_grad or b.requires_grad)
    gradients = [Gradient(t, None if t.dtype == dtype and same_shape(t.shape, shape) else round_block(t.nbytes)) for t in (a, b)]
    return tape.record(kind, (a, b), out, gradients=tuple(gradients))


def add_in_place(tape: Tape, a: Tensor, b: Tensor) -> Tensor:
    """`a += b`: the storage of `a`; the gradient of `b` is cast to its dtype."""
    out = Tensor(a.storage, a.shape, a.dtype, a.requires_grad or b.requires_grad)
    passed = [Gradient(t, None if t.dtype == a.dtype else round_block(t.nbytes)) for t in (a, b) if t.requires_grad]
    moved = 2 * a.nbytes + b.nbytes
    tape.ops.append(Op(f"{tape.scope}.add_", (a.storage, b.storage), out, gradients=tuple(passed), moved=moved))
    return out


def shift(tape: Tape, x: Tensor) -> Tensor:
    """`x + c` with a Python number: saves nothing, the gradient passes through."""
    out = tape.fresh(x.shape, x.dtype, x.requires_grad)
    return tape.record("shift", (x,), out, gradients=(Gradient(x, None),))


def divide(tape: Tape, a: Tensor, b: Tensor) -> Tensor:
    """`a / b`, `b` of the same shape or broadcast; the divisor is saved, and `a` if the divisor needs a gradient."""
    out = tape.fresh(a.shape, a.dtype, a.requires_grad or b.requires_grad)
    full = round_block(out.nbytes)
    gradients = (Gradient(a, full), Gradient(b, round_block(b.nbytes), scratch=3 * full))
    saved = (a, b) if b.requires_grad else (b,)
    return tape.record("div", (a, b), out, saved=saved, gradients=gradients)


def scale(tape: Tape, x: Tensor, kind: str = "scale") -> Tensor:
    """`x * c` or `x / c` with a Python number: saves nothing, the gradient is scaled too."""
    out = tape.fresh(x.shape, x.dtype, x.requires_grad)
    return tape.record(kind, (x,), out, gradients=(Gradient(x, round_block(x.nbytes), moved=2 * x.nbytes),))


def multiply(tape: Tape, a: Tensor, b: Tensor) -> Tensor:
    """`a * b`, `b` of the same shape or broadcast; each is saved if the other needs a gradient.

    The gradient of a factor that was broadcast or widened is a full-size product that is summed or cast when both gradients are
    there (`validate_outputs` of torch/csrc/autograd/engine.cpp).
    """
    shape = _joint(a.shape, b.shape)
    dtype = a.dtype if a.dtype in {b.dtype, "fp32"} else b.dtype
    out = tape.fresh(shape, dtype, a.requires_grad or b.requires_grad)
    full = round_block(out.nbytes)
    needs = [not same_shape(t.shape, shape) or t.dtype != dtype for t in (a, b)]
    gradients = [
        Gradient(t, round_block(t.nbytes), moved=(3 + again) * out.nbytes + t.nbytes * again, launches=1 + again)
        for t, again in zip((a, b), needs, strict=True)
    ]
    # Both products are made before the first is summed or cast; the ledger has counted what they become.
    needing = [this for this in (a, b) if this.requires_grad]
    changed = [not same_shape(this.shape, shape) or this.dtype != dtype for this in needing]
    workspace = late = None
    if any(changed):
        rest = needing[changed.index(True) + 1 :]
        late = full + sum([full - round_block(this.nbytes) for this in rest])
        workspace = sum([full - round_block(this.nbytes) for this in needing])
    saved = ((a,) if b.requires_grad else ()) + ((b,) if a.requires_grad else ())
    return tape.record("mul", (a, b), out, saved=saved, gradients=tuple(gradients), workspace=workspace, late=late)


def _joint(a: tuple[Size, ...], b: tuple[Size, ...]) -> tuple[Size, ...]:
    """The shape of two that are broadcast: the longer, or the columns of the one that has more than one."""
    if len(a) != len(b):
        return a if len(a) > len(b) else b
    return tuple([y if isinstance(x, int) and x == 1 else x for x, y in zip(a, b, strict=True)])


def activation(tape: Tape, x: Tensor, kind: str) -> Tensor:
    """A fused activation such as silu or gelu: saves its input."""
    out = tape.fresh(x.shape, x.dtype, x.requires_grad)
    gradient = Gradient(x, round_block(x.nbytes), moved=3 * x.nbytes)
    return tape.record(kind, (x,), out, saved=(x,), gradients=(gradient,))


def dropout(tape: Tape, x: Tensor, p: float) -> Tensor:
    """`nn.Dropout` in training: nothing at p = 0; else a boolean mask of one byte an element is saved."""
    if p == 0.0:
        return x
    out = tape.fresh(x.shape, x.dtype, x.requires_grad)
    mask = Tensor(Storage(tensor_bytes(x.shape, "bool"), tape.category), x.shape, "bool")
    tape.ops.append(Op(f"{tape.scope}.dropout_mask", (), mask, allocates=mask.storage, launches=0))
    gradient = Gradient(x, round_block(x.nbytes), moved=2 * x.nbytes + mask.nbytes)
    tape.record("dropout", (x, mask), out, saved=(mask,), gradients=(gradient,))
    return out


def tanh(tape: Tape, x: Tensor, kind: str = "tanh") -> Tensor:
    """`tanh(x)` or another function whose derivative is known from its value: saves its output."""
    out = tape.fresh(x.shape, x.dtype, x.requires_grad)
    gradient = Gradient(x, round_block(x.nbytes), moved=3 * x.nbytes)
    return tape.record(kind, (x,), out, saved=(out,), gradients=(gradient,))


def softmax(tape: Tape, x: Tensor) -> Tensor:
    """`softmax(x)` over the last dimension: saves its output."""
    return tanh(tape, x, "softmax")


def softmax_by_default(tape: Tape, x: Tensor) -> Tensor:
    """`softmax(x)` whose caller names no dtype: CUDA autocast makes it one in fp32 (its list AT_FORALL_FP32_SET_OPT_DTYPE)."""
    return softmax(tape, cast(tape, x, "fp32") if tape.autocast else x)


def sigmoid(tape: Tape, x: Tensor) -> Tensor:
    """`sigmoid(x)`: saves its output."""
    out = tape.fresh(x.shape, x.dtype, x.requires_grad)
    gradient = Gradient(x, round_block(x.nbytes), moved=3 * x.nbytes)
    return tape.record("sigmoid", (x,), out, saved=(out,), gradients=(gradient,))


def relu(tape: Tape, x: Tensor) -> Tensor:
    """`relu(x)`: saves its output."""
    out = tape.fresh(x.shape, x.dtype, x.requires_grad)
    gradient = Gradient(x, round_block(x.nbytes), moved=3 * x.nbytes)
    return tape.record("relu", (x,), out, saved=(out,), gradients=(gradient,))


def softcap(tape: Tape, x: Tensor) -> Tensor:
    """`c * tanh(x / c)`, written out as Gemma 2 does."""
    return scale(tape, tanh(tape, scale(tape, x, "softcap")), "softcap")


def rms_norm(tape: Tape, x: Tensor, weight: Tensor) -> Tensor:
    """Root-mean-square normalization as transformers writes it: computed in fp32, cast back, then scaled.

    Mirrors `LlamaRMSNorm.forward` of transformers 5.23. Saves the fp32 copy of its input and, where the weight is trained, the
    normalized output.
    """
    return multiply(tape, weight, cast(tape, over_rms(tape, x), x.dtype))


def rms_normal(tape: Tape, x: Tensor) -> Tensor:
    """The same without a weight; `Llama4TextL2Norm.forward` of transformers 5.23."""
    return cast(tape, over_rms(tape, x), x.dtype)


def rms_norm_t5(tape: Tape, x: Tensor, weight: Tensor) -> Tensor:
    """`T5LayerNorm.forward` of transformers 5.23: `x` over its fp32 root, cast to a 16-bit weight's dtype.

    Not the input but its fp32 copy is squared; the input, in its own dtype, is multiplied by the fp32 root.
    """
    wide = cast(tape, x, "fp32")
    root = _inverse_root(tape, _mean(tape, _square(tape, wide), (*wide.shape[:-1], 1)))
    normal = multiply(tape, x, root)
    narrow = normal if weight.dtype == "fp32" else cast(tape, normal, weight.dtype)
    return multiply(tape, weight, narrow)


def rms_norm_offset(tape: Tape, x: Tensor, weight: Tensor) -> Tensor:
    """The same scaled in fp32 by one more than the weight, then cast; `GemmaRMSNorm.forward` of transformers 5.23."""
    normal = over_rms(tape, x)
    scaled = multiply(tape, normal, shift(tape, cast(tape, weight, "fp32")))
    return cast(tape, scaled, x.dtype)


def rms_norm_wide(tape: Tape, x: Tensor, weight: Tensor) -> Tensor:
    """The same scaled in fp32, then cast; `Olmo2RMSNorm.forward` of transformers 5.23."""
    return cast(tape, multiply(tape, weight, over_rms(tape, x)), x.dtype)


def rms_norm_cast(tape: Tape, x: Tensor, weight: Tensor) -> Tensor:
    """The same with the weight cast to fp32 first; `HeliumRMSNorm.forward` of transformers 5.23."""
    return cast(tape, multiply(tape, cast(tape, weight, "fp32"), over_rms(tape, x)), x.dtype)


def rms_norm_power(tape: Tape, x: Tensor, weight: Tensor | None) -> Tensor:
    """The same by `pow(-0.5)`, scaled in fp32 by the weight, if there is one; `Gemma4RMSNorm.forward` of transformers 5.23."""
    wide = cast(tape, x, "fp32")
    mean = _mean(tape, _square(tape, wide), (*wide.shape[:-1], 1))
    small = round_block(mean.nbytes)
    shifted = shift(tape, mean)
    root = tape.fresh(mean.shape, mean.dtype, mean.requires_grad)
    tape.record("pow", (shifted,), root, saved=(shifted,), gradients=(Gradient(shifted, small, scratch=2 * small, launches=3),))
    normal = multiply(tape, wide, root)
    tape.hold(wide, shifted)
    return cast(tape, normal if weight is None else multiply(tape, normal, cast(tape, weight, "fp32")), x.dtype)


def cohere_norm(tape: Tape, x: Tensor, weight: Tensor) -> Tensor:
    """Layer norm without bias, written out in fp32; `CohereLayerNorm.forward` of transformers 5.23."""
    wide = cast(tape, x, "fp32")
    rows = (*wide.shape[:-1], 1)
    mean = _mean(tape, wide, rows)
    variance = _mean(tape, _square(tape, add(tape, wide, mean, "sub")), rows)
    centred = add(tape, wide, mean, "sub")
    normal = multiply(tape, centred, _inverse_root(tape, variance))
    tape.hold(wide)
    scaled = multiply(tape, cast(tape, weight, "fp32"), normal)
    tape.hold(normal)
    out = cast(tape, scaled, x.dtype)
    tape.hold(mean, variance, scaled)
    return out


def _square(tape: Tape, x: Tensor) -> Tensor:
    full = round_block(x.nbytes)
    out = tape.fresh(x.shape, x.dtype, x.requires_grad)
    return tape.record("pow", (x,), out, saved=(x,), gradients=(Gradient(x, full, scratch=2 * full, moved=7 * full, launches=3),))


def _mean(tape: Tape, x: Tensor, rows: tuple[Size, ...]) -> Tensor:
    full = round_block(x.nbytes)
    out = tape.fresh(rows, x.dtype, x.requires_grad)
    return tape.record("mean", (x,), out, gradients=(Gradient(x, full, moved=full),))


def _inverse_root(tape: Tape, x: Tensor) -> Tensor:
    """`rsqrt(x + eps)`."""
    small = round_block(x.nbytes)
    shifted = tape.fresh(x.shape, x.dtype, x.requires_grad)
    tape.record("add_eps", (x,), shifted, gradients=(Gradient(x, None),))
    root = tape.fresh(x.shape, x.dtype, x.requires_grad)
    return tape.record(
        "rsqrt", (shifted,), root, saved=(root,), gradients=(Gradient(shifted, small, scratch=2 * small, launches=3),)
    )


def over_rms(tape: Tape, x: Tensor) -> Tensor:
    """`x` over its root mean square, in fp32."""
    wide = cast(tape, x, "fp32")
    mean = _mean(tape, _square(tape, wide), (*wide.shape[:-1], 1))
    out = multiply(tape, wide, _inverse_root(tape, mean))
    tape.hold(wide)
    return out


def layer_norm(tape: Tape, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """`F.layer_norm` over the last dimension: one kernel, which saves its input and, per row, mean and inverse deviation.

    Autocast gives it fp32 (its list AT_FORALL_FP32).
    """
    if tape.autocast:
        x = cast(tape, x, "fp32")
        weight, bias = (None if tensor is None else cast(tape, tensor, "fp32") for tensor in (weight, bias))
    rows = (*x.shape[:-1], 1)
    needs = any(tensor is not None and tensor.requires_grad for tensor in (x, weight, bias))
    statistics = [tape.fresh(rows, "fp32", False) for _ in range(2)]
    for tensor in statistics:
        tape.record("statistics", (), tensor, moved=0)
        tape.ops[-1].launches = 0
    out = tape.fresh(x.shape, x.dtype, needs)
    gradients = [Gradient(x, round_block(x.nbytes), moved=3 * x.nbytes)]
    gradients += [Gradient(tensor, round_block(tensor.nbytes)) for tensor in (weight, bias) if tensor is not None]
    kept = (x, *statistics)
    return tape.record("layer_norm", kept, out, saved=kept, gradients=tuple(gradients), moved=2 * x.nbytes)


def clamp(tape: Tape, x: Tensor) -> Tensor:
    """`x.clamp(...)`: saves its input; the backward makes masks and the gradient."""
    out = tape.fresh(x.shape, x.dtype, x.requires_grad)
    gradient = Gradient(x, round_block(x.nbytes), scratch=3 * tensor_bytes(x.shape, "bool"), moved=3 * x.nbytes)
    return tape.record("clamp", (x,), out, saved=(x,), gradients=(gradient,))


def masked_fill(tape: Tape, x: Tensor, mask: Tensor) -> Tensor:
    """`x.masked_fill(mask, value)`: saves the mask."""
    out = tape.fresh(x.shape, x.dtype, x.requires_grad)
    gradient = Gradient(x, round_block(x.nbytes), moved=2 * x.nbytes)
    return tape.record("masked_fill", (x, mask), out, saved=(mask,), gradients=(gradient,))


def clamp_in_place(tape: Tape, x: Tensor) -> Tensor:
    """`x.clamp_(...)`: autograd keeps a copy of what was there before; the backward makes a mask and the gradient."""
    kept = tape.fresh(x.shape, x.dtype, False)
    if x.requires_grad:
        tape.record("clone", (x,), kept)
    out = Tensor(x.storage, x.shape, x.dtype, x.requires_grad)
    masks = 3 * tensor_bytes(x.shape, "bool")
    gradients = (Gradient(x, round_block(x.nbytes), scratch=masks, moved=3 * x.nbytes),) if x.requires_grad else ()
    saved = (kept.storage,) if x.requires_grad else ()
    tape.ops.append(
        Op(
            f"{tape.scope}.clamp_",
            (x.storage, *saved),
            out,
            saved=saved,
            saves=bool(saved),
            gradients=gradients,
            moved=2 * x.nbytes,
        )
    )
    return out


def repeated(tape: Tape, x: Tensor, shape: tuple[Size, ...]) -> Tensor:
    """Rows repeated (`repeat_interleave`): a copy; the gradient is summed over the copies."""
    out = tape.fresh(shape, x.dtype, x.requires_grad)
    return tape.record("repeat", (x,), out, gradients=(Gradient(x, round_block(x.nbytes), moved=out.nbytes + x.nbytes),))


def narrow(tape: Tape, x: Tensor, shape: tuple[Size, ...]) -> Tensor:
    """A slice of `x`: a view; its gradient is padded with zeros to the full size (`slice_backward`)."""
    out = tape.view("slice", x, shape)
    full = round_block(x.nbytes)
    tape.ops[-1].gradients = (Gradient(x, full, moved=x.nbytes + 2 * out.nbytes, launches=2),) if x.requires_grad else ()
    return out


def split(tape: Tape, x: Tensor, shapes: "list[tuple[Size, ...]]") -> list[Tensor]:
    """`x.split(...)` or `chunk`: views of `x`; their gradients wait for each other and are joined into one of the full size."""
    whole = tape.view("split", x, x.shape)
    if x.requires_grad:
        tape.ops[-1].gradients = (Gradient(x, round_block(x.nbytes), moved=2 * x.nbytes),)
    parts = []
    for shape in shapes:
        parts.append(tape.view("split", whole, shape))
        if x.requires_grad:
            tape.ops[-1].gradients = (Gradient(whole, None, piece=True),)
    return parts


def transpose(tape: Tape, x: Tensor, shape: tuple[Size, ...], copied: bool) -> Tensor:
    """Two dimensions swapped: a view. `copied`: the gradient needs a copy to be seen in the old layout."""
    out = tape.view("transpose", x, shape)
    if copied and x.requires_grad:
        tape.ops[-1].gradients = (Gradient(x, round_block(x.nbytes), moved=2 * x.nbytes),)
    return out


def rotate(tape: Tape, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of queries or keys: `x * cos + cat(-x2, x1) * sin`.

    Mirrors `apply_rotary_pos_emb` and `rotate_half` of transformers 5.23.
    """
    turned = multiply(tape, x, cos)
    return add(tape, turned, multiply(tape, _rotate_half(tape, x), sin))


def _rotate_half(tape: Tape, x: Tensor) -> Tensor:
    half = (*x.shape[:-1], x.shape[-1] // 2)
    first, second = narrow(tape, x, half), narrow(tape, x, half)
    negative = scale(tape, second, "neg")
    joined = tape.fresh(x.shape, x.dtype, x.requires_grad)
    tape.record("cat", (negative, first), joined, gradients=(Gradient(negative, None), Gradient(first, None)))
    tape.hold(first, second)
    return joined


def rotate_wide(tape: Tape, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same in fp32, for which each of the two products makes a copy of its own (ModernBERT, vision towers)."""
    turned = multiply(tape, cast(tape, x, "fp32"), cos)
    return add(tape, turned, multiply(tape, _rotate_half(tape, cast(tape, x, "fp32")), sin))


def rotate_part(tape: Tape, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotary position embedding of the first columns of each head, as many as the tables have; the others pass.

    Returns the joined heads, and the rotated and the passed columns, which a caller's variables may hold.
    """
    width = cos.shape[-1]
    first = narrow(tape, x, (*x.shape[:-1], width))
    rest = narrow(tape, x, (*x.shape[:-1], x.shape[-1] - width))
    turned = rotate(tape, first, cos, sin)
    joined = tape.fresh(x.shape, x.dtype, x.requires_grad)
    tape.record("cat", (turned, rest), joined, gradients=(Gradient(turned, None), Gradient(rest, None)))
    tape.hold(x)
    return joined, turned, rest
