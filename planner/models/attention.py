"""Attention between the projections, and the gated MLP, as most decoders of transformers 5.23 have them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import attention as kernels
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.activations import activation
from tuneplan.planner.graph.tensor import KV_CACHE, Tensor
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.decoder import DecoderSpec, masked
from tuneplan.planner.training.attention_kernel import FLASH_MAX_HEAD_DIM, Kernel, choose


def kernel_of(model: Assembly, spec: DecoderSpec, x: Tensor, window: int | None) -> Kernel:
    """The kernel that runs for queries of the dtype of `x`, and notes for the report.

    Raises InputError where FlashAttention is asked for heads that it does not take (`mha_fwd` of its flash_api.cpp).
    """
    settings = model.settings
    if settings.attention == "flash" and spec.head_dim > FLASH_MAX_HEAD_DIM:
        raise InputError(
            f"{spec.id} has heads of {spec.head_dim}, and FlashAttention-2 takes at most {FLASH_MAX_HEAD_DIM}; "
            "use --attention sdpa"
        )
    model.attention_input = x
    grouped = spec.num_attention_heads != spec.num_key_value_heads
    dtype = settings.autocast or x.dtype
    kernel = choose(replace(settings, padded=masked(model, window)), dtype, grouped, spec.head_dim)
    if kernel.reason or "attention_kernel" not in model.notes:
        model.notes["attention_kernel"] = kernel.name
        model.notes["attention_kernel_reason"] = kernel.reason
    return kernel


def fuses_values(spec: DecoderSpec, kernel: Kernel) -> bool:
    """Whether the gradient of the values arrives in the layout of the projection, so that it is not copied."""
    grouped = spec.num_attention_heads != spec.num_key_value_heads
    return kernel.name == "flash" or (kernel.name == "efficient" and not grouped)


def projected(
    model: Assembly,
    spec: DecoderSpec,
    kernel: Kernel,
    x: Tensor,
    bias: bool = False,
    split: Callable[[Tensor, str], Tensor] | None = None,
    module: str = "self_attn",
    rotary: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values `(batch, heads, length, head_dim)` out of `q_proj`, `k_proj` and `v_proj`.

    Args:
        model: where ops are recorded.
        spec: the dimensions.
        kernel: as `kernel_of` gave it.
        x: the module's input.
        bias: the three have one.
        split: gives `(batch, length, heads, head_dim)` for a projection and "q_norm", "k_norm" or "", where a norm comes in.
        module: name of the attention module.
        rotary: queries and keys will be rotated, so that their gradients come in the layout of heads.
    """
    tensors = []
    for name in "qkv":
        heads = spec.num_attention_heads if name == "q" else spec.num_key_value_heads
        y = model.linear(x, f"{module}.{name}_proj", heads * spec.head_dim, bias)
        y = split(y, "" if name == "v" else f"{name}_norm") if split else split_heads(model, y, spec.head_dim)
        tensors.append(heads_first(model, y, copied=(rotary and name != "v") or not fuses_values(spec, kernel)))
    q, k, v = tensors
    return q, k, v


def attended(
    model: Assembly,
    spec: DecoderSpec,
    kernel: Kernel,
    x: Tensor,
    heads: tuple[Tensor, Tensor, Tensor],
    shared: tuple[Tensor, ...],
    bias: bool = False,
    softcap: bool = False,
    cast_back: bool = False,
    output: str = "self_attn.o_proj",
    holds_parts: bool = False,
    in_parts: bool = False,
    widened: bool = False,
    rotary: bool = True,
    after: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """From queries, keys and values to the output of `o_proj`; also attention weights that the layer's code holds (eager).

    Args:
        model: where ops are recorded.
        spec: the dimensions.
        kernel: as `kernel_of` gave it.
        x: the module's input, which its code holds to the end.
        heads: queries, keys and values, as `projected` gives them.
        shared: cosines and sines where heads are rotated, and the layer's mask, if it has one.
        bias: `o_proj` has one.
        softcap: scores are capped.
        cast_back: queries and keys come out of the rotation in the dtype in which they went in (OLMo 2).
        output: name of the output projection.
        holds_parts: variables of the module's code hold the rotated and the other columns of heads that are rotated in part.
        in_parts: heads are cut in two for the rotation even where all their columns are rotated.
        widened: queries and keys are rotated in fp32 (Cohere); `cast_back` is then set too.
        rotary: queries and keys are rotated.
        after: what is done with queries and keys after the rotation.
    """
    tape = model.tape
    tables, masks = (shared[:2], shared[2:]) if rotary else ((), shared)
    q, k, v = heads
    tape.scope = output.rpartition(".")[0]
    dtype = q.dtype
    parts: tuple[Tensor, ...] = ()
    if widened:
        q, k = pw.cast(tape, q, "fp32"), pw.cast(tape, k, "fp32")
    before = q, k
    if tables and tables[0].shape[-1] >= spec.head_dim and not in_parts:
        q, k = (pw.rotate(tape, t, *tables) for t in (q, k))
    elif tables:
        (q, *first), (k, *second) = (pw.rotate_part(tape, t, *tables) for t in (q, k))
        parts = (*first, *second) if holds_parts else ()
    if cast_back:
        turned = q, k
        q, k = pw.cast(tape, q, dtype), pw.cast(tape, k, dtype)
        tape.hold(*turned, *before)
    if after:
        q, k = after(q, k)
    out, weights, held = attend(model, spec, kernel, (q, k, v), masks, softcap)
    tape.scope = ""
    y = model.linear(out, output, spec.hidden_size, bias)
    tape.hold(x, *held, *parts)
    return y, weights


def attend(
    model: Assembly,
    spec: DecoderSpec,
    kernel: Kernel,
    rotated: tuple[Tensor, Tensor, Tensor],
    masks: tuple[Tensor, ...],
    softcap: bool = False,
    wide: bool = True,
    own: bool = True,
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Cache, prefix and the kernel.

    Args:
        model: where ops are recorded.
        spec: the dimensions.
        kernel: as `kernel_of` gave it.
        rotated: queries, keys and values `(batch, heads, length, head_dim)`.
        masks: the layer's mask, if it has one.
        softcap: scores are capped.
        wide: the written-out softmax runs in fp32.
        own: keys and values are the layer's own; if not, an earlier layer has put them into the cache and behind the prefix.

    Returns:
        The output `(batch, length, heads * head_dim)`; attention weights that the layer's code holds (eager); what the
        module's code holds to its end.
    """
    tape = model.tape
    q, k, v = rotated
    if own:
        k, v = stored(model, k, v)
    held: tuple[Tensor, ...] = (q, k, v)
    for part in model.method.parts:
        q, k, v = part.grouped(model, q, k, v)
    out, weights, taken = run_kernel(model, spec, kernel, (q, k, v), masks, softcap, wide)
    for part in model.method.parts:
        out = part.ungrouped(model, out)
    out = tape.view("join_heads", out, (*out.shape[:2], spec.num_attention_heads * spec.head_dim))
    return out, weights, (*held, *taken)


def run_kernel(
    model: Assembly,
    spec: DecoderSpec,
    kernel: Kernel,
    heads: tuple[Tensor, Tensor, Tensor],
    masks: tuple[Tensor, ...],
    softcap: bool = False,
    wide: bool = True,
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The kernel alone; see `attend`.

    Gives `(batch, length, heads, columns of values)`, eager attention's weights, and copies that FlashAttention's code holds.
    """
    tape, settings = model.tape, model.settings
    q, k, v = heads
    dropout = attention_probability(model, spec)
    if kernel.name == "eager":
        out, scores = kernels.eager(tape, q, k, v, masks[0], dropout, settings.use_cache, softcap, wide)
        return out, (scores,), ()
    if kernel.name == "math":
        return kernels.math(tape, q, k, v, dropout, packed=settings.use_cache), (), ()
    if kernel.name == "efficient":
        return kernels.efficient(tape, q, k, v, masks[0] if masks else None), (), ()
    q, k, v = (pw.cast(tape, t, settings.autocast or settings.dtype) for t in (q, k, v))
    return kernels.flash(tape, q, k, v), (), (q, k, v)


def stored(model: Assembly, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values as attention takes them: out of the cache, if there is one, and behind those that a method adds."""
    if model.settings.use_cache and model.settings.gradient_checkpointing == "off":
        k, v = cached(model, k), cached(model, v)
    for part in model.method.parts:
        k, v = part.keys_values(model, k, v)
    return k, v


def attention_probability(model: Assembly, spec: DecoderSpec) -> float:
    """The dropout of attention: the run's, or the config's."""
    given = model.settings.attention_dropout
    return spec.attention_dropout if given is None else given


def split_heads(model: Assembly, x: Tensor, head_dim: int) -> Tensor:
    """`(batch, length, heads * head_dim)` -> `(batch, length, heads, head_dim)`, a view."""
    batch, length, width = x.shape
    return model.tape.view("split_heads", x, (batch, length, width // head_dim, head_dim))


def heads_first(model: Assembly, x: Tensor, copied: bool) -> Tensor:
    """`(batch, length, heads, head_dim)` -> `(batch, heads, length, head_dim)`, a view.

    `copied`: the gradient arrives in the other layout and is copied before the projection's backward can use it.
    """
    batch, length, heads, head_dim = x.shape
    return pw.transpose(model.tape, x, (batch, heads, length, head_dim), copied)


def cached(model: Assembly, x: Tensor) -> Tensor:
    """`DynamicLayer.update` of an empty cache: keys or values are copied into it and used from there."""
    tape = model.tape
    before, tape.category = tape.category, KV_CACHE
    out = pw.copy(tape, x, "cache")
    tape.category = before
    tape.outputs.append(out.storage)
    return out


def gated_mlp(model: Assembly, spec: Any, x: Tensor, bias: bool = False, module: str = "mlp", width: int = 0) -> Tensor:
    """`down_proj(act(gate_proj(x)) * up_proj(x))`; `width` inside where it is not the model's `intermediate_size`."""
    tape = model.tape
    width = width or spec.intermediate_size
    gate = model.linear(x, f"{module}.gate_proj", width, bias)
    tape.scope = module
    active = activation(tape, gate, spec.hidden_act)
    up = model.linear(x, f"{module}.up_proj", width, bias)
    tape.scope = module
    product = pw.multiply(tape, active, up)
    tape.scope = ""
    y = model.linear(product, f"{module}.down_proj", spec.hidden_size, bias)
    tape.hold(x)
    return y


def plain_mlp(
    model: Assembly, spec: DecoderSpec, x: Tensor, up: str, down: str, bias: bool = True, apart: bool = False, kept: bool = False
) -> Tensor:
    """`down(act(up(x)))`. `up` and `down`: names of the two projections; `bias`: both have one; `apart`, `kept`: see `linear`."""
    tape = model.tape
    wide = model.linear(x, up, spec.intermediate_size, bias, apart=apart, kept=kept)
    tape.scope = up.rpartition(".")[0]
    active = activation(tape, wide, spec.hidden_act)
    tape.scope = ""
    y = model.linear(active, down, spec.hidden_size, bias, apart=apart, kept=kept)
    tape.hold(x)
    return y


def fused_gated_mlp(model: Assembly, spec: DecoderSpec, x: Tensor) -> Tensor:
    """`down_proj(up * act(gate))` with gate and up out of one projection."""
    tape = model.tape
    fused = model.linear(x, "mlp.gate_up_proj", 2 * spec.intermediate_size)
    tape.scope = "mlp"
    shape = (*x.shape[:-1], spec.intermediate_size)
    gate, up = pw.split(tape, fused, [shape, shape])
    active = activation(tape, gate, spec.hidden_act)
    product = pw.multiply(tape, up, active)
    tape.scope = ""
    y = model.linear(product, "mlp.down_proj", spec.hidden_size)
    tape.hold(x, gate)
    return y
