"""GPTBigCode (StarCoder 1, SantaCoder): GPT-2 with one head of keys and values, or with all of them.

Mirrors transformers 5.23 models/gpt_bigcode/modeling_gpt_bigcode.py.
"""

from dataclasses import dataclass

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attend, heads_first, kernel_of, plain_mlp, split_heads
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec
from tuneplan.planner.models.families.gpt2 import EMBEDDING, KEYS, LAYERS

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

    def enter(hidden: Tensor) -> tuple[Tensor, ...]:
        places = decoder.positions(model, "transformer.wpe", spec.max_position_embeddings, hidden.shape[1])
        joined = pw.add(model.tape, hidden, places)
        return pw.dropout(model.tape, joined, spec.embd_pdrop), hidden, places

    side = spec.max_position_embeddings
    model.common("transformer.bias", (side, side), "bool", trained=False, saved=False, buffer=True)
    return decoder.start(model, EMBEDDING, (), (None,), enter=enter, exit_held=False)


def layer(model: Assembly, spec: GptBigCodeSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    tape = model.tape
    normed = model.layer_norm(entry, "ln_1")
    hidden, weights = _attention(model, spec, normed, shared)
    hidden = model.submodule("self_attn", normed, entry, hidden)
    residual = pw.add(tape, hidden, entry)
    normed = model.layer_norm(residual, "ln_2")
    result = pw.dropout(tape, plain_mlp(model, spec, normed, "mlp.c_fc", "mlp.c_proj"), spec.resid_pdrop)
    result = model.submodule("mlp", normed, residual, result)
    exit = pw.add(tape, residual, result)
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(hidden, normed, result, *weights)
    return close("layer", tape, entry, exit)


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


def finish(model: Assembly, spec: GptBigCodeSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, model.layer_norm(entry, "transformer.ln_f"), EMBEDDING, "lm_head")
