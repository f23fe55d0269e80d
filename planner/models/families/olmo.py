"""OLMo 1: a layer norm in fp32 without weights; queries, keys and values may be clipped.

Mirrors transformers 5.23 models/olmo/modeling_olmo.py.
"""

from dataclasses import dataclass

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attended, gated_mlp, heads_first, kernel_of, split_heads
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec

LAYERS = "model.layers.*."
EMBEDDING = "model.embed_tokens"
_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 50304,
}


@dataclass(frozen=True, slots=True)
class OlmoSpec(DecoderSpec):
    """An OLMo model; `attention_bias`: biases on q, k, v and o; `clipped`: q, k and v are clamped in place."""

    attention_bias: bool
    clipped: bool


def read(id: str, config: ConfigReader) -> OlmoSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    return OlmoSpec(
        **decoder.dimensions(id, config, defaults=_DEFAULTS),
        sliding_window=None,
        attention_bias=config.boolean("attention_bias", False),
        clipped=config.has("clip_qkv") and config.number("clip_qkv") >= 0,
    )


def start(model: Assembly, spec: OlmoSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, rotary tables and the mask; returns what layers share."""
    return decoder.start(model, EMBEDDING, (spec.head_dim,) * 2, (None,), wide_tables=True)


def layer(model: Assembly, spec: OlmoSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    tape = model.tape
    normed = _norm(model, entry, "input_layernorm")
    hidden, weights = _attention(model, spec, normed, shared)
    residual = pw.add(tape, entry, model.submodule("self_attn", normed, entry, hidden))
    normed = _norm(model, residual, "post_attention_layernorm")
    exit = pw.add(tape, residual, model.submodule("mlp", normed, residual, gated_mlp(model, spec, normed)))
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(*weights)
    return close("layer", tape, entry, exit)


def _norm(model: Assembly, x: Tensor, module: str) -> Tensor:
    tape = model.tape
    tape.scope = module
    y = pw.cast(tape, pw.layer_norm(tape, pw.cast(tape, x, "fp32"), None, None), x.dtype)
    tape.scope = ""
    return y


def _attention(model: Assembly, spec: OlmoSpec, x: Tensor, shared: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Self-attention; also returns attention weights that the layer's code holds (eager)."""
    kernel = kernel_of(model, spec, x, None)
    counts = (spec.num_attention_heads, *[spec.num_key_value_heads] * 2)
    three = [
        model.linear(x, f"self_attn.{name}_proj", count * spec.head_dim, spec.attention_bias)
        for name, count in zip("qkv", counts, strict=True)
    ]
    if spec.clipped:
        three = [pw.clamp_in_place(model.tape, y) for y in three]
    q, k, v = (heads_first(model, split_heads(model, y, spec.head_dim), copied=True) for y in three)
    return attended(model, spec, kernel, x, (q, k, v), shared, spec.attention_bias, cast_back=True)


def finish(model: Assembly, spec: OlmoSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, _norm(model, entry, "model.norm"), EMBEDDING, "lm_head")
