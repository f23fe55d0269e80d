"""Qwen3-Next and Qwen3.5 (text): gated delta nets, and in every fourth layer attention whose output is gated.

Mirrors transformers 5.23 models/qwen3_next/modeling_qwen3_next.py, qwen3_5/modeling_qwen3_5.py and
qwen3_5_moe/modeling_qwen3_5_moe.py with the linear attention in torch, as they run without the packages flash-linear-attention
and causal-conv1d (`use_kernel_func_from_hub_with_fallback`). Layers for the prediction of further tokens are not built there.
"""

from dataclasses import dataclass
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.convolution import causal_conv
from tuneplan.planner.graph.delta_rule import chunked_delta_rule, exp
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attend, fuses_values, gated_mlp, heads_first, kernel_of, split_heads
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.families.mixtral import DENSE, MOE, MixtralSpec, sparse_block
from tuneplan.planner.models.router_logits import asked

LAYERS = "model.layers.*."
EMBEDDING = "model.embed_tokens"
LINEAR, FULL = "linear_attention", "full_attention"
_NEXT, _DENSE = "qwen3_next", "qwen3_5_text"
_SHARED: dict[str, Any] = {"head_dim": 256, "num_attention_heads": 16, "max_position_embeddings": 32768}
_DEFAULTS: dict[str, dict[str, Any]] = {
    _NEXT: _SHARED
    | {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 48, "num_key_value_heads": 2, "vocab_size": 151936},
    _DENSE: _SHARED
    | {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32, "num_key_value_heads": 4, "vocab_size": 248320},
    "qwen3_5_moe_text": _SHARED | {"hidden_size": 2048, "num_hidden_layers": 40, "num_key_value_heads": 2, "vocab_size": 248320},
}
TORCH_NOTE = (
    "linear attention is planned as transformers runs it in torch; with the package flash-linear-attention (and causal-conv1d) "
    "it keeps far less and is faster"
)


@dataclass(frozen=True, slots=True)
class QwenHybridSpec(MixtralSpec):
    """A hybrid of linear and full attention.

    Attributes:
        mixers: of each layer, "linear_attention" or "full_attention".
        key_heads: heads of queries and keys in linear attention.
        value_heads: heads of values.
        key_dim: columns of a query's or key's head.
        value_dim: columns of a value's head.
        conv_width: tokens that the convolution sees.
        rotary_width: columns of each head that are rotated.
        fused: what enters linear attention comes out of two projections (Qwen3-Next), and not of four.
    """

    mixers: tuple[str, ...]
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv_width: int
    rotary_width: int
    fused: bool


def read(id: str, config: ConfigReader) -> QwenHybridSpec:
    """The spec of a config.json. Raises InputError where dimensions are missing, absurd or contradict each other."""
    kind = config.text("model_type")
    fields = decoder.dimensions(id, config, defaults=_DEFAULTS[kind])
    layers = fields["num_hidden_layers"]
    keys, values = (
        config.integer("linear_num_key_heads", 16, maximum=2**14),
        config.integer("linear_num_value_heads", 32, maximum=2**14),
    )
    if values % keys:
        raise InputError(f"{config.origin}: linear_num_value_heads={values} is not a multiple of linear_num_key_heads={keys}")
    count, top_k = _experts_of(config, kind)
    return QwenHybridSpec(
        **fields,
        sliding_window=None,
        num_experts=count,
        top_k=top_k,
        moe_intermediate_size=config.integer("moe_intermediate_size", 512) if count else 0,
        shared_intermediate_size=config.integer("shared_expert_intermediate_size", 512) if count else 0,
        norm_topk=kind != _NEXT or config.boolean("norm_topk_prob", True),
        cast_back=True,
        layer_kinds=_layer_kinds(config, kind, count, layers),
        head_norm="head",
        qkv_bias=config.boolean("attention_bias", False),
        output_bias=config.boolean("attention_bias", False),
        mixers=_mixers(config, layers),
        key_heads=keys,
        value_heads=values,
        key_dim=config.integer("linear_key_head_dim", 128, maximum=2**14),
        value_dim=config.integer("linear_value_head_dim", 128, maximum=2**14),
        conv_width=config.integer("linear_conv_kernel_dim", 4, maximum=2**10),
        rotary_width=decoder.rotary_width(config, fields["head_dim"], 0.25),
        fused=kind == _NEXT,
        note=TORCH_NOTE,
        router_logits=asked(config) if count else "",
    )


def _experts_of(config: ConfigReader, kind: str) -> tuple[int, int]:
    """Experts of a layer and of a token; none in the dense models."""
    if kind == _DENSE:
        return 0, 0
    count = config.integer("num_experts", 512 if kind == _NEXT else 256, minimum=0 if kind == _NEXT else 1, maximum=2**16)
    if not count:
        return 0, 0
    top_k = config.integer("num_experts_per_tok", 10 if kind == _NEXT else 8, maximum=2**10)
    if top_k > count:
        raise InputError(f"{config.origin}: num_experts_per_tok={top_k}, but there are {count} experts; check the config")
    return count, top_k


def _layer_kinds(config: ConfigReader, kind: str, count: int, layers: int) -> tuple[str, ...]:
    if not count:
        return (DENSE,) * layers
    if kind != _NEXT:
        return (MOE,) * layers
    step = config.integer("decoder_sparse_step", 1, maximum=2**12)
    dense = config.mapping.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(isinstance(index, int) for index in dense):
        raise InputError(f"{config.origin}: 'mlp_only_layers' must be a list of layers' indices. Correct the file.")
    return tuple([MOE if index not in dense and (index + 1) % step == 0 else DENSE for index in range(layers)])


def _mixers(config: ConfigReader, layers: int) -> tuple[str, ...]:
    given = config.mapping.get("layer_types")
    if given is None:
        step = config.integer("full_attention_interval", 4, maximum=2**12)
        return tuple([LINEAR if (index + 1) % step else FULL for index in range(layers)])
    if not isinstance(given, list) or len(given) != layers or any(kind not in (LINEAR, FULL) for kind in given):
        raise InputError(
            f"{config.origin}: 'layer_types' must be a list of {layers} of {LINEAR!r} and {FULL!r}, one for each layer"
        )
    return tuple(given)


def start(model: Assembly, spec: QwenHybridSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, rotary tables (each sequence has its own in Qwen3.5) and the mask; returns what layers share."""
    model.notes.setdefault("linear_attention", "torch")
    if model.method.prefix_length:
        raise InputError(
            f"{spec.id}: layers with linear attention have a state and no keys and values, so peft's prefixes do not fit; use "
            "prompt_tuning or lora"
        )
    if model.settings.use_cache and model.settings.gradient_checkpointing == "off":
        raise InputError(f"{spec.id}: a cache that is kept in training holds states, which tuneplan does not know; train without")
    return decoder.start(model, EMBEDDING, (spec.rotary_width,) * 2, (None,), tables_each=not spec.fused)


def layer_kind(spec: QwenHybridSpec, index: int) -> str:
    """What mixes the tokens, and whether the layer has experts or a plain MLP."""
    return f"{spec.mixers[index]} {spec.layer_kinds[index]}"


def layer(model: Assembly, spec: QwenHybridSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    assert model.layer is not None
    tape = model.tape
    normed = _norm(model, entry, "input_layernorm")
    linear = spec.mixers[model.layer] == LINEAR
    hidden, weights = (_delta_net(model, spec, normed), ()) if linear else _attention(model, spec, normed, shared)
    residual = pw.add(tape, entry, model.submodule("self_attn", normed, entry, hidden))
    normed = _norm(model, residual, "post_attention_layernorm")
    dense = spec.layer_kinds[model.layer] == DENSE
    hidden = gated_mlp(model, spec, normed) if dense else sparse_block(model, spec, normed)
    exit = pw.add(tape, residual, model.submodule("mlp", normed, residual, hidden))
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(*weights, *shared[:2])  # every layer is given the tables
    return close("layer", tape, entry, exit)


def _norm(model: Assembly, x: Tensor, module: str) -> Tensor:
    return model.rms_norm(x, module, pw.rms_norm_offset)


def _attention(model: Assembly, spec: QwenHybridSpec, x: Tensor, shared: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Self-attention with a gate; also returns attention weights that the layer's code holds (eager)."""
    tape, head = model.tape, spec.head_dim
    kernel = kernel_of(model, spec, x, None)
    both = split_heads(model, model.linear(x, "self_attn.q_proj", 2 * spec.num_attention_heads * head, spec.qkv_bias), 2 * head)
    tape.scope = "self_attn"
    q, wide = pw.split(tape, both, [(*both.shape[:-1], head)] * 2)
    gate = pw.copy(tape, wide, "reshape")
    gate = tape.view("reshape", gate, (*x.shape[:-1], spec.num_attention_heads * head))
    q = heads_first(model, _norm(model, q, "self_attn.q_norm"), copied=True)
    k = model.linear(x, "self_attn.k_proj", spec.num_key_value_heads * head, spec.qkv_bias)
    k = heads_first(model, _norm(model, split_heads(model, k, head), "self_attn.k_norm"), copied=True)
    v = model.linear(x, "self_attn.v_proj", spec.num_key_value_heads * head, spec.qkv_bias)
    v = heads_first(model, split_heads(model, v, head), copied=not fuses_values(spec, kernel))
    tape.scope = "self_attn"
    (q, *_), (k, *_) = (pw.rotate_part(tape, t, *shared[:2]) for t in (q, k))
    out, weights, held = attend(model, spec, kernel, (q, k, v), shared[2:])
    gated = pw.multiply(tape, out, pw.sigmoid(tape, gate))
    tape.scope = ""
    y = model.linear(gated, "self_attn.o_proj", spec.hidden_size, spec.output_bias)
    tape.hold(x, gate, *held)
    return y, weights


def _delta_net(model: Assembly, spec: QwenHybridSpec, x: Tensor) -> Tensor:
    """`Qwen3_5GatedDeltaNet`: a convolution, the gated delta rule, a norm with a gate. Shapes: x `(batch, length, hidden)`."""
    tape = model.tape
    batch, length, _ = x.shape
    keys, values = spec.key_heads * spec.key_dim, spec.value_heads * spec.value_dim
    if model.settings.padded:
        x = pw.scale(tape, x, "padding")
    mixed, z, b, a = _projected_together(model, spec, x) if spec.fused else _projected(model, spec, x)
    mixed = pw.transpose(tape, mixed, (batch, 2 * keys + values, length), copied=True)
    tape.scope = "linear_attn"
    weight = model.weight("linear_attn.conv1d", (2 * keys + values, 1, spec.conv_width), "other")
    seen = causal_conv(tape, pw.cast(tape, mixed, weight.dtype), weight, None, length)
    active = pw.cast(tape, pw.activation(tape, seen, spec.hidden_act), mixed.dtype)
    active = pw.transpose(tape, active, (batch, length, 2 * keys + values), copied=False)
    q, k, v = pw.split(tape, active, [(batch, length, width) for width in (keys, keys, values)])
    q, k = (tape.view("reshape", t, (batch, length, spec.key_heads, spec.key_dim)) for t in (q, k))
    v = tape.view("reshape", v, (batch, length, spec.value_heads, spec.value_dim))
    beta = pw.sigmoid(tape, b)
    decay = _decay(model, spec, a)
    out = chunked_delta_rule(tape, q, k, v, decay, beta)
    rows = (batch * length * spec.value_heads, spec.value_dim)
    y = _gated_norm(model, tape.view("reshape", out, rows), tape.view("reshape", z, rows))
    tape.scope = ""
    y = model.linear(tape.view("reshape", y, (batch, length, values)), "linear_attn.out_proj", spec.hidden_size)
    tape.hold(x, active, z, b, a, q, k, v, beta, decay, out)
    return y


def _projected(model: Assembly, spec: QwenHybridSpec, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values beside each other, the gate, and what the writing and the decay come from (Qwen3.5)."""
    keys, values = spec.key_heads * spec.key_dim, spec.value_heads * spec.value_dim
    widths = {"qkv": 2 * keys + values, "z": values, "b": spec.value_heads, "a": spec.value_heads}
    mixed, z, b, a = (model.linear(x, f"linear_attn.in_proj_{name}", width) for name, width in widths.items())
    return mixed, z, b, a


def _projected_together(model: Assembly, spec: QwenHybridSpec, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same out of two projections, cut head by head and copied (Qwen3-Next)."""
    tape = model.tape
    batch, length, _ = x.shape
    heads, each = spec.key_heads, spec.value_heads // spec.key_heads
    keys, values = heads * spec.key_dim, spec.value_heads * spec.value_dim
    wide = model.linear(x, "linear_attn.in_proj_qkvz", 2 * keys + 2 * values)
    small = model.linear(x, "linear_attn.in_proj_ba", 2 * spec.value_heads)
    tape.scope = "linear_attn"
    widths = (spec.key_dim, spec.key_dim, each * spec.value_dim, each * spec.value_dim)
    q, k, v, z = pw.split(
        tape, tape.view("view", wide, (batch, length, heads, sum(widths))), [(batch, length, heads, w) for w in widths]
    )
    b, a = pw.split(tape, tape.view("view", small, (batch, length, heads, 2 * each)), [(batch, length, heads, each)] * 2)
    if each > 1:  # several value heads of a key head lie apart
        v, z, b, a = (pw.copy(tape, t, "reshape") for t in (v, z, b, a))
    else:
        v = pw.copy(tape, v, "reshape")
    q, k = (pw.copy(tape, t, "reshape") for t in (q, k))
    b, a = (tape.view("reshape", t, (batch, length, spec.value_heads)) for t in (b, a))
    mixed = tape.fresh((batch, length, 2 * keys + values), q.dtype, q.requires_grad)
    tape.record("cat", (q, k, v), mixed, gradients=tuple([Gradient(t, None) for t in (q, k, v)]))
    tape.hold(wide, small, q, k, v)
    tape.scope = ""
    return mixed, z, b, a


def _decay(model: Assembly, spec: QwenHybridSpec, a: Tensor) -> Tensor:
    """`-A_log.float().exp() * softplus(a.float() + dt_bias)`, in fp32."""
    tape, heads = model.tape, (spec.value_heads,)
    rate = pw.cast(tape, model.weight("linear_attn", heads, "other", "A_log"), "fp32")
    rate = pw.scale(tape, exp(tape, rate), "neg")
    shift = model.weight("linear_attn", heads, "other", "dt_bias")
    moved = pw.add(tape, pw.cast(tape, a, "fp32"), shift)
    soft = pw.activation(tape, moved, "softplus")
    return pw.multiply(tape, rate, soft)


def _gated_norm(model: Assembly, x: Tensor, gate: Tensor) -> Tensor:
    """`Qwen3_5RMSNormGated`: normed and scaled in the input's dtype, then times an activated gate in fp32."""
    tape = model.tape
    normed = model.rms_norm(x, "linear_attn.norm")
    tape.scope = "linear_attn.norm"
    active = pw.activation(tape, pw.cast(tape, gate, "fp32"), "silu")
    return pw.cast(tape, pw.multiply(tape, normed, active), x.dtype)


def finish(model: Assembly, spec: QwenHybridSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, _norm(model, entry, "model.norm"), EMBEDDING, "lm_head")
