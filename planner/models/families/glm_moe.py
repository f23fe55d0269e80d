"""GLM-4 MoE (GLM-4.5, 4.6, 4.7) and MiniMax M2: grouped attention with heads rotated in part, experts chosen by sigmoid scores.

Mirrors transformers 5.23 models/glm4_moe/modeling_glm4_moe.py and minimax_m2/modeling_minimax_m2.py. Layers for the prediction of
further tokens are not built there, and so are not counted.
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
from tuneplan.planner.models.moe import grouped_sigmoid_router, run_experts, sigmoid_router
from tuneplan.planner.models.router_logits import KEPT, LOSS, asked

LAYERS = "model.layers.*."
EMBEDDING = "model.embed_tokens"
MOE, DENSE = "moe", "dense"
HEAD, WHOLE = "head", "whole"
_GLM, _MINIMAX = "glm4_moe", "minimax_m2"
_DEFAULTS: dict[str, dict[str, Any]] = {
    _GLM: {
        "hidden_size": 4096,
        "intermediate_size": 10944,
        "num_hidden_layers": 46,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "vocab_size": 151552,
        "max_position_embeddings": 131072,
    },
    _MINIMAX: {
        "hidden_size": 3072,
        "intermediate_size": 1536,
        "num_hidden_layers": 62,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 200064,
        "max_position_embeddings": 196608,
    },
}


@dataclass(frozen=True, slots=True)
class GlmMoeSpec(DecoderSpec):
    """A decoder with experts chosen by sigmoid scores.

    Attributes:
        num_experts: routed experts of a layer.
        top_k: routed experts of a token.
        moe_intermediate_size: width inside a routed expert.
        shared_experts: experts that take every token; they are one MLP. 0 for none (MiniMax).
        groups: groups that experts are in; 0 where there are none (MiniMax).
        norm_topk: the weights of a token's experts are divided by their sum.
        first_k_dense_replace: layers with a plain MLP, before those with experts.
        head_norm: norms of queries and keys: "head" by head, "whole" before they are split, or "".
        rotary_width: columns of each head that are rotated.
        qkv_bias: q, k and v have biases.
    """

    num_experts: int
    top_k: int
    moe_intermediate_size: int
    shared_experts: int
    groups: int
    norm_topk: bool
    first_k_dense_replace: int
    head_norm: str
    rotary_width: int
    qkv_bias: bool


def read(id: str, config: ConfigReader) -> GlmMoeSpec:
    """The spec of a config.json. Raises InputError where dimensions are missing, absurd or contradict each other."""
    kind = config.text("model_type")
    fields = decoder.dimensions(id, config, defaults=_DEFAULTS[kind])
    count, top_k = _experts_of(config, kind)
    glm = kind == _GLM
    groups = config.integer("n_group", 1, maximum=2**10) if glm else 0
    if groups and count % groups:
        raise InputError(f"{config.origin}: n_group={groups} does not divide the {count} experts; check the config")
    if groups and count // groups < 2:
        raise InputError(f"{config.origin}: n_group={groups} leaves less than two of {count} experts a group; check the config")
    if not glm and config.number("router_jitter_noise", 0.0):
        raise InputError(f"{config.origin}: router_jitter_noise multiplies tokens in place, which tuneplan does not know; set 0")
    return GlmMoeSpec(
        **fields,
        sliding_window=None,
        num_experts=count,
        top_k=top_k,
        moe_intermediate_size=config.integer("moe_intermediate_size", 1408) if glm else fields["intermediate_size"],
        shared_experts=config.integer("n_shared_experts", 1, maximum=2**10) if glm else 0,
        groups=groups,
        norm_topk=not glm or config.boolean("norm_topk_prob", True),
        first_k_dense_replace=config.integer("first_k_dense_replace", 1, minimum=0, maximum=2**12) if glm else 0,
        head_norm=WHOLE if not glm else HEAD if config.boolean("use_qk_norm", False) else "",
        rotary_width=_rotary_width(config, kind, fields["head_dim"]),
        qkv_bias=glm and config.boolean("attention_bias", False),
        router_logits=asked(config, KEPT if glm else LOSS),
    )


def _experts_of(config: ConfigReader, kind: str) -> tuple[int, int]:
    """Experts of a layer and of a token; each class knows the other's name for the first (`attribute_map`)."""
    names = ("n_routed_experts", "num_local_experts") if kind == _GLM else ("num_local_experts", "num_experts")
    name = next((name for name in names if config.has(name)), names[0])
    count = config.integer(name, 128 if kind == _GLM else 256, maximum=2**16)
    top_k = config.integer("num_experts_per_tok", 8, maximum=2**10)
    if top_k > count:
        raise InputError(f"{config.origin}: num_experts_per_tok={top_k}, but there are {count} experts; check the config")
    return count, top_k


def _rotary_width(config: ConfigReader, kind: str, head_dim: int) -> int:
    if kind == _MINIMAX and config.has("rotary_dim"):
        width = config.integer("rotary_dim", maximum=2**14)
        if width % 2 or width > head_dim:
            raise InputError(f"{config.origin}: rotary_dim={width} of {head_dim} columns cannot be rotated in pairs; check it")
        return width
    return decoder.rotary_width(config, head_dim, 0.5 if kind == _GLM else 1.0)


def start(model: Assembly, spec: GlmMoeSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, rotary tables and the mask; returns what layers share."""
    return decoder.start(model, EMBEDDING, (spec.rotary_width,) * 2, (None,))


def layer_kind(spec: GlmMoeSpec, index: int) -> str:
    """Whether the layer has experts or a plain MLP."""
    return MOE if index >= spec.first_k_dense_replace else DENSE


def layer(model: Assembly, spec: GlmMoeSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    assert model.layer is not None
    dense = layer_kind(spec, model.layer) == DENSE

    def attend(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return _attention(model, spec, x, shared)

    def feed(x: Tensor) -> Tensor:
        return gated_mlp(model, spec, x) if dense else _experts(model, spec, x)

    return decoder.pre_norm_layer(model, entry, attend, feed)


def _attention(model: Assembly, spec: GlmMoeSpec, x: Tensor, shared: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Self-attention; also returns attention weights that the layer's code holds (eager)."""

    def split(y: Tensor, norm: str) -> Tensor:
        if norm and spec.head_norm == WHOLE:
            y = model.rms_norm(y, f"self_attn.{norm}")
        y = split_heads(model, y, spec.head_dim)
        return model.rms_norm(y, f"self_attn.{norm}") if norm and spec.head_norm == HEAD else y

    kernel = kernel_of(model, spec, x, None)
    heads = projected(model, spec, kernel, x, spec.qkv_bias, split)
    return attended(model, spec, kernel, x, heads, shared, in_parts=True)


def _experts(model: Assembly, spec: GlmMoeSpec, x: Tensor) -> Tensor:
    """The sparse block: `(batch, length, hidden)` -> the same."""
    tape = model.tape
    batch, length, width = x.shape
    flat = tape.view("view", x, (batch * length, width))
    if spec.groups:
        routed = grouped_sigmoid_router(model, "mlp.gate", flat, spec.num_experts, spec.top_k, spec.groups, spec.norm_topk)
    else:
        routed = sigmoid_router(model, "mlp.gate", flat, spec.num_experts, spec.top_k)
    experts = Experts("mlp.experts", spec.num_experts, spec.top_k, width, spec.moe_intermediate_size, spec.hidden_act)
    y = tape.view("view", run_experts(model, flat, routed, experts), x.shape)
    if not spec.shared_experts:
        tape.hold(x, *routed.held, routed.weights, routed.experts)
        return y
    inside = spec.moe_intermediate_size * spec.shared_experts
    beside = gated_mlp(model, spec, x, module="mlp.shared_experts", width=inside)
    total = pw.add(tape, y, beside)
    tape.hold(x, y, beside, *routed.held, routed.weights, routed.experts)
    return total


def finish(model: Assembly, spec: GlmMoeSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, model.rms_norm(entry, "model.norm"), EMBEDDING, "lm_head")
