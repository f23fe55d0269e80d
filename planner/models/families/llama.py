"""Llama and every architecture shaped like it.

Mirrors transformers 5.23 models/llama/modeling_llama.py and its relatives: RMS norm, rotary positions, (grouped) attention
with four projections, a gated MLP. The relatives differ by the flags of `_VARIANTS`.
"""

from dataclasses import dataclass

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attended, gated_mlp, kernel_of, projected, split_heads
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec


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
MISTRAL_WINDOW = 4096
LAYERS = "model.layers.*."
EMBEDDING = "model.embed_tokens"


@dataclass(frozen=True, slots=True)
class LlamaSpec(DecoderSpec):
    """A Llama-shaped model: where it has biases, norms of queries and keys, and multipliers."""

    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    head_norm: bool
    multipliers: bool


def read(id: str, config: ConfigReader) -> LlamaSpec:
    """The spec of a config.json. Raises InputError where dimensions are missing, absurd or contradict each other."""
    model_type = config.text("model_type")
    variant = _VARIANTS[model_type]
    fields = decoder.dimensions(id, config, defaults={"head_dim": variant.head_dim})
    bias = variant.reads_attention_bias and config.boolean("attention_bias", False)
    return LlamaSpec(
        **fields,
        sliding_window=_window(config, variant),
        qkv_bias=bias or variant.qkv_bias,
        output_bias=bias,
        mlp_bias=model_type in ("llama", "granite") and config.boolean("mlp_bias", False),
        head_norm=variant.head_norm,
        multipliers=variant.multipliers,
    )


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
    """Token ids, embeddings, rotary tables and the mask; returns what layers share."""
    after = "embedding_multiplier" if spec.multipliers else ""
    return decoder.start(model, EMBEDDING, (spec.head_dim,) * 2, (spec.sliding_window,), after=after)


def layer(model: Assembly, spec: LlamaSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    tape = model.tape
    hidden = model.rms_norm(entry, "input_layernorm")
    normed = hidden
    hidden, weights = _attention(model, spec, normed, shared)
    residual = _residual(model, spec, entry, model.submodule("self_attn", normed, entry, hidden))
    hidden = model.rms_norm(residual, "post_attention_layernorm")
    exit = _residual(
        model, spec, residual, model.submodule("mlp", hidden, residual, gated_mlp(model, spec, hidden, spec.mlp_bias))
    )
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

    def split(y: Tensor, norm: str) -> Tensor:
        y = split_heads(model, y, spec.head_dim)
        return model.rms_norm(y, f"self_attn.{norm}") if norm and spec.head_norm else y

    kernel = kernel_of(model, spec, x, spec.sliding_window)
    heads = projected(model, spec, kernel, x, spec.qkv_bias, split)
    return attended(model, spec, kernel, x, heads, shared, spec.output_bias)


def finish(model: Assembly, spec: LlamaSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    hidden = model.rms_norm(entry, "model.norm")
    return decoder.finish(model, spec, entry, hidden, EMBEDDING, "lm_head", "scale" if spec.multipliers else "")
