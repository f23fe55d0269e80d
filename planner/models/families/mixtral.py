"""Mixtral and decoders like it: Llama's attention, and a mixture of experts in place of the MLP in some or all layers.

Mirrors transformers 5.23 models/mixtral/modeling_mixtral.py, qwen2_moe/modeling_qwen2_moe.py, qwen3_moe/modeling_qwen3_moe.py
and olmoe/modeling_olmoe.py. The relatives differ by the flags of `_VARIANTS`.
"""

from dataclasses import dataclass
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attended, gated_mlp, kernel_of, projected, split_heads
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec
from tuneplan.planner.models.expert_weights import Experts
from tuneplan.planner.models.moe import run_experts, softmax_router
from tuneplan.planner.models.router_logits import asked


@dataclass(frozen=True, slots=True)
class _Variant:
    """How a relative differs from Mixtral.

    Attributes:
        experts_key: where the config says how many experts there are, and how many unless it does.
        top_k: experts of a token, unless the config says.
        own_width: experts have a `moe_intermediate_size` of their own; its default.
        shared_width: default width of a shared expert beside the others; 0 for none.
        normed: the weights of a token's experts are divided by their sum: yes, or the default of `norm_topk_prob`.
        cast_back: these weights return to the model's dtype.
        sparse_step: the config may keep some layers dense (`decoder_sparse_step`, `mlp_only_layers`).
        head_norm: norms of queries and keys: "head" by head, "whole" before they are split, or "".
        biases: "qkv", "all" where `attention_bias` says so, or "".
        window: default window, where the config's `sliding_window` may limit attention.
        defaults: of the upstream configuration class.
    """

    experts_key: tuple[str, int] = ("num_experts", 128)
    top_k: int = 8
    own_width: int = 0
    shared_width: int = 0
    normed: bool | None = None
    cast_back: bool = True
    sparse_step: bool = False
    head_norm: str = ""
    biases: str = ""
    window: bool = False
    defaults: tuple[tuple[str, Any], ...] = ()


_VARIANTS = {
    "mixtral": _Variant(("num_local_experts", 8), 2, normed=True, cast_back=False, defaults=(("num_key_value_heads", 8),)),
    "qwen2_moe": _Variant(("num_experts", 60), 4, 1408, 5632, sparse_step=True, biases="qkv", window=True),
    "qwen3_moe": _Variant(("num_experts", 128), 8, 768, sparse_step=True, head_norm="head", biases="all"),
    "olmoe": _Variant(("num_experts", 64), 8, head_norm="whole", biases="all"),
}
LAYERS = "model.layers.*."
EMBEDDING = "model.embed_tokens"
MOE, DENSE = "moe", "dense"


@dataclass(frozen=True, slots=True)
class MixtralSpec(DecoderSpec):
    """A decoder with experts.

    Attributes:
        num_experts: experts of a layer.
        top_k: experts of a token.
        moe_intermediate_size: width inside an expert.
        shared_intermediate_size: width of the shared expert, 0 for none.
        norm_topk: the weights of a token's experts are divided by their sum.
        cast_back: these weights return to the model's dtype.
        layer_kinds: of each layer, "moe" or "dense".
        head_norm: see `_Variant`.
        qkv_bias: q, k and v have biases.
        output_bias: o has one.
        clipped: queries, keys and values are clipped in place (OLMoE's `clip_qkv`).
    """

    num_experts: int
    top_k: int
    moe_intermediate_size: int
    shared_intermediate_size: int
    norm_topk: bool
    cast_back: bool
    layer_kinds: tuple[str, ...]
    head_norm: str
    qkv_bias: bool
    output_bias: bool


def read(id: str, config: ConfigReader) -> MixtralSpec:
    """The spec of a config.json. Raises InputError where dimensions are missing, absurd or contradict each other."""
    model_type = config.text("model_type")
    variant = _VARIANTS[model_type]
    fields = decoder.dimensions(id, config, defaults=dict(variant.defaults))
    count = config.integer(*variant.experts_key, maximum=2**16)
    if config.has("num_local_experts"):  # an alias in every configuration class
        count = config.integer("num_local_experts", maximum=2**16)
    top_k = config.integer("num_experts_per_tok", variant.top_k, maximum=2**10)
    if top_k > count:
        raise InputError(f"{config.origin}: num_experts_per_tok={top_k}, but there are {count} experts; check the config")
    width = fields["intermediate_size"]
    if model_type == "mixtral" and config.number("router_jitter_noise", 0.0):
        raise InputError(f"{config.origin}: router_jitter_noise multiplies tokens in place, which tuneplan does not know; set 0")
    if model_type == "olmoe" and config.has("clip_qkv"):
        raise InputError(f"{config.origin}: clip_qkv clips queries, keys and values, which tuneplan does not know for olmoe")
    bias = variant.biases == "all" and config.boolean("attention_bias", False)
    return MixtralSpec(
        **fields,
        sliding_window=_window(config, model_type),
        num_experts=count,
        top_k=top_k,
        moe_intermediate_size=config.integer("moe_intermediate_size", variant.own_width) if variant.own_width else width,
        shared_intermediate_size=(
            config.integer("shared_expert_intermediate_size", variant.shared_width) if variant.shared_width else 0
        ),
        norm_topk=variant.normed if variant.normed is not None else config.boolean("norm_topk_prob", False),
        cast_back=variant.cast_back,
        layer_kinds=_layer_kinds(config, variant, count, fields["num_hidden_layers"]),
        head_norm=variant.head_norm,
        qkv_bias=bias or (variant.biases == "qkv" and config.boolean("qkv_bias", True)),
        output_bias=bias,
        router_logits=asked(config),
    )


def _window(config: ConfigReader, model_type: str) -> int | None:
    if model_type == "mixtral":
        return config.optional_integer("sliding_window", maximum=2**30)
    if model_type == "olmoe" or not config.boolean("use_sliding_window", False):
        return None
    if model_type == "qwen2_moe":
        raise InputError(
            f"{config.origin}: use_sliding_window gives windows to some layers, which tuneplan does not know for qwen2_moe"
        )
    return config.optional_integer("sliding_window", maximum=2**30)


def _layer_kinds(config: ConfigReader, variant: _Variant, count: int, layers: int) -> tuple[str, ...]:
    if not variant.sparse_step:
        return (MOE,) * layers
    step = config.integer("decoder_sparse_step", 1, maximum=2**12)
    given = config.mapping.get("mlp_only_layers")
    dense = [] if given is None else given
    if not isinstance(dense, list) or not all(isinstance(index, int) for index in dense):
        raise InputError(f"{config.origin}: 'mlp_only_layers' must be a list of layers' indices. Correct the file.")
    return tuple([MOE if index not in dense and (index + 1) % step == 0 else DENSE for index in range(layers)])


def start(model: Assembly, spec: MixtralSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, rotary tables and the mask; returns what layers share."""
    return decoder.start(model, EMBEDDING, (spec.head_dim,) * 2, (spec.sliding_window,))


def layer_kind(spec: MixtralSpec, index: int) -> str:
    """Whether the layer has experts or a plain MLP."""
    return spec.layer_kinds[index]


def layer(model: Assembly, spec: MixtralSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    assert model.layer is not None
    dense = spec.layer_kinds[model.layer] == DENSE

    def attend(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return _attention(model, spec, x, shared)

    def feed(x: Tensor) -> Tensor:
        return gated_mlp(model, spec, x) if dense else sparse_block(model, spec, x)

    return decoder.pre_norm_layer(model, entry, attend, feed)


def _attention(model: Assembly, spec: MixtralSpec, x: Tensor, shared: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Self-attention; also returns attention weights that the layer's code holds (eager)."""

    def split(y: Tensor, norm: str) -> Tensor:
        if norm and spec.head_norm == "whole":
            y = model.rms_norm(y, f"self_attn.{norm}")
        y = split_heads(model, y, spec.head_dim)
        return model.rms_norm(y, f"self_attn.{norm}") if norm and spec.head_norm == "head" else y

    kernel = kernel_of(model, spec, x, spec.sliding_window)
    heads = projected(model, spec, kernel, x, spec.qkv_bias, split)
    return attended(model, spec, kernel, x, heads, shared, spec.output_bias)


def sparse_block(model: Assembly, spec: MixtralSpec, x: Tensor) -> Tensor:
    """The sparse block: `(batch, length, hidden)` -> the same."""
    tape = model.tape
    batch, length, width = x.shape
    flat = tape.view("view", x, (batch * length, width))
    beside = _shared_mlp(model, spec, flat) if spec.shared_intermediate_size else None
    routed = softmax_router(
        model, "mlp.gate", flat, spec.num_experts, spec.top_k, normed=spec.norm_topk, cast_back=spec.cast_back
    )
    experts = Experts("mlp.experts", spec.num_experts, spec.top_k, spec.hidden_size, spec.moe_intermediate_size, spec.hidden_act)
    y = run_experts(model, flat, routed, experts)
    if beside is not None:
        gate = pw.sigmoid(tape, model.linear(flat, "mlp.shared_expert_gate", 1))
        shared = pw.multiply(tape, gate, beside)
        tape.hold(beside)
        total = pw.add(tape, y, shared)
        tape.hold(y, shared)
        y = total
    tape.hold(flat, *routed.held, routed.weights, routed.experts)
    return tape.view("reshape", y, x.shape)


def _shared_mlp(model: Assembly, spec: MixtralSpec, x: Tensor) -> Tensor:
    return gated_mlp(model, spec, x, module="mlp.shared_expert", width=spec.shared_intermediate_size)


def finish(model: Assembly, spec: MixtralSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, model.rms_norm(entry, "model.norm"), EMBEDDING, "lm_head")
