"""GPT-Neo: GPT-2 with separate projections, scores that are not scaled, and a triangle of positions in each layer.

Mirrors transformers 5.23 models/gpt_neo/modeling_gpt_neo.py, which has no sdpa; its own FlashAttention is not modelled.
"""

from dataclasses import dataclass

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import heads_first, plain_mlp, split_heads
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec
from tuneplan.planner.models.families import gpt2
from tuneplan.planner.models.families.gpt2 import EMBEDDING, LAYERS, finish
from tuneplan.planner.models.families.gptj import run_written_out, written_out

__all__ = ["EMBEDDING", "LAYERS", "NO_FLASH", "finish", "layer", "read", "start"]
NO_FLASH = True
_KEYS = {
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "num_key_value_heads": "",
    "head_dim": "",
}
_DEFAULTS = {
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "vocab_size": 50257,
    "hidden_act": "gelu_new",
    "tie_word_embeddings": True,
}


@dataclass(frozen=True, slots=True)
class GptNeoSpec(DecoderSpec):
    """A GPT-Neo model: dropout of the outputs of attention and MLP, and of the embeddings."""

    resid_dropout: float
    embed_dropout: float


def read(id: str, config: ConfigReader) -> GptNeoSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    fields = decoder.dimensions(id, config, activation_key="activation_function", defaults=_DEFAULTS, keys=_KEYS, rotary=False)
    kinds = _kinds(config)
    if len(kinds) != fields["num_hidden_layers"]:
        raise InputError(
            f"{config.origin}: attention_types are of {len(kinds)} layers and num_layers={fields['num_hidden_layers']}; "
            "check the config"
        )
    return GptNeoSpec(
        **fields,
        sliding_window=None,
        resid_dropout=config.number("resid_dropout", 0.0, maximum=decoder.MOST_DROPOUT),
        embed_dropout=config.number("embed_dropout", 0.0, maximum=decoder.MOST_DROPOUT),
    )


def _kinds(config: ConfigReader) -> list[str]:
    """The kind of each layer, "global" or "local", out of `attention_types`. Raises InputError for what is no such list."""
    given = config.mapping.get("attention_types") or [[["global", "local"], 12]]
    try:
        kinds = [kind for names, count in given for _ in range(min(count, 4096)) for kind in names]
    except (TypeError, ValueError):
        kinds = [""]
    if set(kinds) - {"global", "local"}:
        raise InputError(f"{config.origin}: attention_types must be like [[['global', 'local'], 12]]; it is {str(given)[:80]!r}")
    return kinds


def start(model: Assembly, spec: GptNeoSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings of tokens and positions, and the mask; returns what layers share."""
    run_written_out(model, "GPT-Neo")
    return gpt2.with_positions(model, spec.embed_dropout)


def layer(model: Assembly, spec: GptNeoSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""

    def attention(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, weights = _attention(model, spec, x, shared[0])
        return pw.dropout(model.tape, y, spec.resid_dropout), (weights,)

    def mlp(x: Tensor) -> Tensor:
        return pw.dropout(model.tape, plain_mlp(model, spec, x, "mlp.c_fc", "mlp.c_proj"), spec.resid_dropout)

    return gpt2.layer_of(model, entry, attention, mlp)


def _attention(model: Assembly, spec: GptNeoSpec, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Self-attention; also returns attention weights that the layer's code holds."""
    tape = model.tape
    model.attention_input = x
    side = spec.max_position_embeddings
    model.buffer("attn.attention.bias", (side, side), "bool")
    flat = [model.linear(x, f"attn.attention.{name}_proj", spec.hidden_size) for name in "qkv"]
    tape.scope = "attn.attention"
    q, k, v = (heads_first(model, split_heads(model, t, spec.head_dim), copied=True) for t in flat)
    joined, weights, *taken = written_out(model, spec, (q, k, v), mask, scaled=False)
    tape.scope = ""
    y = model.linear(joined, "attn.attention.out_proj", spec.hidden_size, bias=True)
    tape.hold(x, q, *taken)
    return y, weights
