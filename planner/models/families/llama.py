"""Llama and every architecture shaped like it.

Mirrors transformers 5.23 models/llama/modeling_llama.py and its relatives: RMS norm, rotary positions, (grouped) attention
with four projections, a gated MLP. The relatives differ by the flags of `_VARIANTS`.
"""

from dataclasses import dataclass, replace
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import attention as kernels
from tuneplan.planner.graph import loss as losses
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.matmul import embedding
from tuneplan.planner.graph.tensor import KV_CACHE, Storage, Tensor, tensor_bytes
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.training.attention_kernel import choose


@dataclass(frozen=True, slots=True)
class _Variant:
    """How a relative differs from Llama.

    Attributes:
        qkv_bias: biases on q, k and v whatever the config says (Qwen2).
        reads_attention_bias: the config's `attention_bias` gives biases to q, k, v and o.
        head_norm: RMS norm of queries and keys, head by head (Qwen3).
        multipliers: embeddings, residuals and logits are scaled (Granite).
        window: the config's `sliding_window` may limit attention.
        head_dim: where the config does not say; None is hidden_size / num_attention_heads.
    """

    qkv_bias: bool = False
    reads_attention_bias: bool = False
    head_norm: bool = False
    multipliers: bool = False
    window: bool = False
    head_dim: int | None = None


_VARIANTS = {
    "llama": _Variant(reads_attention_bias=True),
    "mistral": _Variant(window=True),
    "qwen2": _Variant(qkv_bias=True, window=True),
    "qwen3": _Variant(reads_attention_bias=True, head_norm=True, window=True, head_dim=128),
    "granite": _Variant(reads_attention_bias=True, multipliers=True),
}
MODEL_TYPES = tuple(_VARIANTS)
MISTRAL_WINDOW = 4096
MOST_DROPOUT = 0.99
LAYERS = "model.layers.*."
FUSED_ACTIVATIONS = ("silu", "swish", "gelu", "gelu_pytorch_tanh", "relu")
EMBEDDING = "model.embed_tokens"


@dataclass(frozen=True, slots=True)
class LlamaSpec(ModelSpec):
    """A Llama-shaped model. Names are those of config.json; `sliding_window` is None where attention is full."""

    intermediate_size: int
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    head_norm: bool
    multipliers: bool
    attention_dropout: float
    hidden_act: str
    sliding_window: int | None


def read(id: str, config: ConfigReader) -> LlamaSpec:
    """The spec of a config.json. Raises InputError where dimensions are missing, absurd or contradict each other."""
    model_type = config.text("model_type")
    variant = _VARIANTS[model_type]
    hidden = config.integer("hidden_size")
    heads = config.integer("num_attention_heads", maximum=2**16)
    key_heads = config.integer("num_key_value_heads", heads, maximum=2**16)
    if heads % key_heads:
        raise InputError(
            f"{config.origin}: num_attention_heads={heads} is not a multiple of num_key_value_heads={key_heads}; check the config"
        )
    if not config.has("head_dim") and variant.head_dim is None and hidden % heads:
        raise InputError(
            f"{config.origin}: hidden_size={hidden} is not a multiple of num_attention_heads={heads} and there is no "
            "head_dim; check the config"
        )
    head_dim = config.integer("head_dim", variant.head_dim or hidden // heads or None, maximum=2**14)
    if head_dim % 2:
        raise InputError(f"{config.origin}: head_dim={head_dim} is odd, which rotary positions cannot be; check the config")
    bias = variant.reads_attention_bias and config.boolean("attention_bias", False)
    return LlamaSpec(
        id=id,
        model_type=model_type,
        hidden_size=hidden,
        num_hidden_layers=config.integer("num_hidden_layers", maximum=2**12),
        vocab_size=config.integer("vocab_size"),
        max_position_embeddings=config.integer("max_position_embeddings", 2048, maximum=2**30),
        tie_word_embeddings=config.boolean("tie_word_embeddings", False),
        intermediate_size=config.integer("intermediate_size"),
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=head_dim,
        qkv_bias=bias or variant.qkv_bias,
        output_bias=bias,
        mlp_bias=model_type in ("llama", "granite") and config.boolean("mlp_bias", False),
        head_norm=variant.head_norm,
        multipliers=variant.multipliers,
        attention_dropout=config.number("attention_dropout", 0.0, maximum=MOST_DROPOUT),
        hidden_act=_activation(config),
        sliding_window=_window(config, variant),
    )


def _activation(config: ConfigReader) -> str:
    """The MLP's activation. Raises InputError for one that is not a single fused kernel, whose memory would differ."""
    name = config.text("hidden_act", "silu")
    if name not in FUSED_ACTIVATIONS:
        known = ", ".join(FUSED_ACTIVATIONS)
        raise InputError(f"{config.origin}: hidden_act {name!r} is an activation that tuneplan does not know; it knows {known}")
    return name


def _window(config: ConfigReader, variant: _Variant) -> int | None:
    """The attention window: Mistral's is 4096 unless the config says otherwise, Qwen's needs `use_sliding_window`."""
    if not variant.window:
        return None
    if config.text("model_type") == "mistral":
        absent = "sliding_window" not in config.mapping
        return MISTRAL_WINDOW if absent else config.optional_integer("sliding_window", maximum=2**30)
    if not config.boolean("use_sliding_window", False) or not config.has("sliding_window"):
        return None
    return config.integer("sliding_window", maximum=2**30)


def start(model: Assembly, spec: LlamaSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, rotary tables and, for eager attention, the mask; returns what layers share."""
    tape = model.begin("", 1)
    batch, length = model.token_shape
    ids = tape.fresh((batch, length), "int64", False)
    tape.record("token_ids", (), ids)
    labels = tape.fresh((batch, length), "int64", False)
    tape.record("labels", (), labels)
    hidden = embedding(tape, (batch, length), model.embedding_weight(EMBEDDING))
    leaf: tuple[Tensor, ...] = ()
    leaves: tuple[Storage, ...] = ()
    if model.settings.gradient_checkpointing != "off" and model.method.inputs_need_grad():
        hidden.requires_grad = True
        leaf = (hidden,) if spec.multipliers or model.method.virtual_tokens else ()
        leaves = (hidden.storage, hidden.storage)
    for part in model.method.parts:
        hidden = part.embedded(model, hidden)
    if spec.multipliers:
        hidden = pw.scale(tape, hidden, "embedding_multiplier")
    shared = [_table(model, spec, hidden.dtype) for _ in range(2)]
    model.rotary = tuple(shared)
    mask = _mask(model, spec, hidden.dtype)
    if mask is not None:
        shared.append(mask)
    carried: tuple[Storage, ...] = (*[t.storage for t in (ids, labels, *shared, *leaf)], *tape.held)
    return close("embed_tokens", tape, None, hidden, carried, batch=2, leaves=leaves), tuple(shared)


def _masked(model: Assembly, spec: LlamaSpec) -> bool:
    """Whether sdpa gets a mask: for padding, for a prefix of keys, and for a window shorter than the sequences."""
    settings = model.settings
    if model.method.prefix_length:
        return True
    if settings.padded or spec.sliding_window is None:
        return settings.padded
    longer: Any = settings.seq_len + model.method.virtual_tokens > spec.sliding_window
    return longer if isinstance(longer, bool) else bool(longer.any())


def _table(model: Assembly, spec: LlamaSpec, dtype: str) -> Tensor:
    length = model.settings.seq_len + model.method.virtual_tokens
    table = model.tape.fresh((1, length, spec.head_dim), dtype, False)
    wide = tensor_bytes(table.shape, "fp32")
    return model.tape.record("rotary_table", (), table, scratch=3 * wide)


def _mask(model: Assembly, spec: LlamaSpec, dtype: str) -> Tensor | None:
    """Eager attention adds a mask of the hidden states' dtype; sdpa gets a boolean one when sequences are padded."""
    batch, length = model.token_shape
    length = length + model.method.virtual_tokens
    keys = length + model.method.prefix_length
    if model.settings.attention == "eager":
        mask = model.tape.fresh((batch, 1, length, keys), dtype, False)
    elif model.settings.attention == "sdpa" and _masked(model, spec):
        mask = model.tape.fresh((batch, 1, length, keys), "bool", False)
    else:
        return None
    return model.tape.record("causal_mask", (), mask, scratch=tensor_bytes(mask.shape, "bool"))


def layer(model: Assembly, spec: LlamaSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    tape = model.tape
    hidden = model.rms_norm(entry, "input_layernorm")
    normed = hidden
    hidden, weights = _attention(model, spec, normed, shared)
    residual = _residual(model, spec, entry, model.submodule("self_attn", normed, entry, hidden))
    hidden = model.rms_norm(residual, "post_attention_layernorm")
    exit = _residual(model, spec, residual, model.submodule("mlp", hidden, residual, _mlp(model, spec, hidden)))
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(*weights)
    return close("layer", tape, entry, exit)


def _residual(model: Assembly, spec: LlamaSpec, residual: Tensor, hidden: Tensor) -> Tensor:
    if spec.multipliers:
        hidden = pw.scale(model.tape, hidden, "residual_multiplier")
    return pw.add(model.tape, residual, hidden)


def _attention(model: Assembly, spec: LlamaSpec, x: Tensor, shared: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Self-attention; also returns attention weights that the layer's code holds (eager)."""
    tape = model.tape
    cos, sin, *masks = shared
    width = spec.num_key_value_heads * spec.head_dim
    settings = model.settings
    grouped = spec.num_attention_heads != spec.num_key_value_heads
    dtype = settings.autocast or x.dtype
    kernel = choose(replace(settings, padded=_masked(model, spec)), dtype, grouped, spec.head_dim)
    fused_values = kernel.name == "flash" or (kernel.name == "efficient" and not grouped)
    q = model.linear(x, "self_attn.q_proj", spec.num_attention_heads * spec.head_dim, spec.qkv_bias)
    q = _heads(model, q, spec, "q_norm", copied=True)
    k = model.linear(x, "self_attn.k_proj", width, spec.qkv_bias)
    k = _heads(model, k, spec, "k_norm", copied=True)
    v = model.linear(x, "self_attn.v_proj", width, spec.qkv_bias)
    v = _heads(model, v, spec, "", copied=not fused_values)
    tape.scope = "self_attn"
    q, k = pw.rotate(tape, q, cos, sin), pw.rotate(tape, k, cos, sin)
    if settings.use_cache and settings.gradient_checkpointing == "off":
        k, v = _cached(model, k), _cached(model, v)
    for part in model.method.parts:
        k, v = part.keys_values(model, k, v)
    model.notes["attention_kernel"] = kernel.name
    model.notes["attention_kernel_reason"] = kernel.reason
    dropout = spec.attention_dropout if settings.attention_dropout is None else settings.attention_dropout
    weights: tuple[Tensor, ...] = ()
    if kernel.name == "eager":
        out, scores = kernels.eager(tape, q, k, v, masks[0], dropout, packed=settings.use_cache)
        weights = (scores,)
    elif kernel.name == "math":
        out = kernels.math(tape, q, k, v, dropout, packed=settings.use_cache)
    elif kernel.name == "efficient":
        out = kernels.efficient(tape, q, k, v, masks[0] if masks else None)
    else:
        q, k, v = (pw.cast(tape, t, settings.autocast or settings.dtype) for t in (q, k, v))
        out = kernels.flash(tape, q, k, v)
    out = tape.view("join_heads", out, (*x.shape[:-1], spec.num_attention_heads * spec.head_dim))
    tape.scope = ""
    y = model.linear(out, "self_attn.o_proj", spec.hidden_size, spec.output_bias)
    tape.hold(x, q, k, v)
    return y, weights


def _heads(model: Assembly, x: Tensor, spec: LlamaSpec, norm: str, copied: bool) -> Tensor:
    """`(batch, length, heads * head_dim)` -> `(batch, heads, length, head_dim)`, a view.

    `copied`: the gradient arrives in the other layout and is copied before the projection's backward can use it.
    """
    tape = model.tape
    batch, length, width = x.shape
    heads = width // spec.head_dim
    x = tape.view("split_heads", x, (batch, length, heads, spec.head_dim))
    if norm and spec.head_norm:
        x = model.rms_norm(x, f"self_attn.{norm}")
    return pw.transpose(tape, x, (batch, heads, length, spec.head_dim), copied)


def _cached(model: Assembly, x: Tensor) -> Tensor:
    """`DynamicLayer.update` of an empty cache: keys or values are copied into it and used from there."""
    tape = model.tape
    before, tape.category = tape.category, KV_CACHE
    out = pw.copy(tape, x, "cache")
    tape.category = before
    tape.outputs.append(out.storage)
    return out


def _mlp(model: Assembly, spec: LlamaSpec, x: Tensor) -> Tensor:
    tape = model.tape
    gate = model.linear(x, "mlp.gate_proj", spec.intermediate_size, spec.mlp_bias)
    tape.scope = "mlp"
    active = pw.activation(tape, gate, spec.hidden_act)
    up = model.linear(x, "mlp.up_proj", spec.intermediate_size, spec.mlp_bias)
    tape.scope = "mlp"
    product = pw.multiply(tape, active, up)
    tape.scope = ""
    y = model.linear(product, "mlp.down_proj", spec.hidden_size, spec.mlp_bias)
    tape.hold(x)
    return y


def finish(model: Assembly, spec: LlamaSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    tape = model.begin("", 1)
    hidden = model.rms_norm(entry, "model.norm")
    tape.hold(entry)
    shape = (spec.vocab_size, spec.hidden_size)
    head = model.embedding_weight(EMBEDDING) if spec.tie_word_embeddings else model.weight("lm_head", shape, "head")
    tape.scope = "lm_head"
    loss = losses.LOSSES[model.settings.loss](tape, hidden, head, None, spec.multipliers)
    for part in model.method.parts:
        loss = part.loss(model, loss)
        part.finish(model)
    return close("head", tape, entry, None, entry_held=False)
