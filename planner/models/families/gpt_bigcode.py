"""GPTBigCode (StarCoder 1, SantaCoder): GPT-2 with one head of keys and values, or with all of them.

Mirrors transformers 5.23 models/gpt_bigcode/modeling_gpt_bigcode.py.
"""

from dataclasses import dataclass

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attend, heads_first, kernel_of, plain_mlp, split_heads
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec
from tuneplan.planner.models.families import gpt2
from tuneplan.planner.models.families.gpt2 import EMBEDDING, KEYS, LAYERS, finish

__all__ = ["EMBEDDING", "LAYERS", "finish", "layer", "read", "start"]
_DEFAULTS = {
    "hidden_size": 768,
    "max_position_embeddings": 1024,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "vocab_size": 50257,
    "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "attention_dropout": 0.1,
}


@dataclass(frozen=True, slots=True)
class GptBigCodeSpec(DecoderSpec):
    """A GPTBigCode model: dropout of the outputs of attention and MLP, and of the embeddings."""

    resid_pdrop: float
    embd_pdrop: float


def read(id: str, config: ConfigReader) -> GptBigCodeSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd, and for cross-attention."""
    if config.boolean("add_cross_attention", False):
        raise InputError(f"{config.origin}: add_cross_attention is not planned by tuneplan for GPTBigCode; use plan trace")
    defaults = {**_DEFAULTS, "num_key_value_heads": 1} if config.boolean("multi_query", True) else _DEFAULTS
    fields = decoder.dimensions(id, config, activation_key="activation_function", defaults=defaults, keys=KEYS, rotary=False)
    return GptBigCodeSpec(
        **fields,
        sliding_window=None,
        resid_pdrop=config.number("resid_pdrop", 0.1, maximum=decoder.MOST_DROPOUT),
        embd_pdrop=config.number("embd_pdrop", 0.1, maximum=decoder.MOST_DROPOUT),
    )


def start(model: Assembly, spec: GptBigCodeSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings of tokens and positions, and the mask; returns what layers share."""
    side = spec.max_position_embeddings
    model.common("transformer.bias", (side, side), "bool", trained=False, saved=False, buffer=True)
    return gpt2.with_positions(model, spec.embd_pdrop)


def layer(model: Assembly, spec: GptBigCodeSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""

    def mlp(x: Tensor) -> Tensor:
        return pw.dropout(model.tape, plain_mlp(model, spec, x, "mlp.c_fc", "mlp.c_proj"), spec.resid_pdrop)

    return gpt2.layer_of(model, entry, lambda x: _attention(model, spec, x, shared), mlp)


def _attention(model: Assembly, spec: GptBigCodeSpec, x: Tensor, masks: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Self-attention; also returns attention weights that the layer's code holds (eager)."""
    tape = model.tape
    kernel = kernel_of(model, spec, x, None)
    batch, length, width = x.shape
    size, heads = spec.head_dim, spec.num_attention_heads
    fused = model.linear(x, "attn.c_attn", width + 2 * spec.num_key_value_heads * size, bias=True)
    if spec.num_key_value_heads == 1:
        q, k, v = pw.split(tape, fused, [x.shape, (batch, 1, length, size), (batch, 1, length, size)])
        q = heads_first(model, split_heads(model, q, size), copied=kernel.name != "flash")
    else:
        by_head = heads_first(model, tape.view("split_heads", fused, (batch, length, heads, 3 * size)), copied=True)
        q, k, v = pw.split(tape, by_head, [(batch, heads, length, size)] * 3)
    tape.scope = "attn"
    out, weights, held = attend(model, spec, kernel, (q, k, v), masks)
    tape.scope = ""
    y = model.linear(out, "attn.c_proj", spec.hidden_size, bias=True)
    dropped = pw.dropout(tape, y, spec.resid_pdrop)
    tape.hold(x, y, *held)
    return dropped, weights
