"""GPT-2: learned positions, `Conv1D` projections, queries, keys and values out of one, and dropout wherever it can be.

Mirrors transformers 5.23 models/gpt2/modeling_gpt2.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tuneplan.planner.errors import NotModelledError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.activations import activation
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attend, fuses_values, heads_first, kernel_of, split_heads
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec

LAYERS = "transformer.h.*."
EMBEDDING = "transformer.wte"
KEYS = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "intermediate_size": "n_inner",
    "attention_dropout": "attn_pdrop",
    "num_key_value_heads": "",
    "head_dim": "",
}
_DEFAULTS = {
    "hidden_size": 768,
    "max_position_embeddings": 1024,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "vocab_size": 50257,
    "hidden_act": "gelu_new",
    "tie_word_embeddings": True,
    "attention_dropout": 0.1,
}


@dataclass(frozen=True, slots=True)
class Gpt2Spec(DecoderSpec):
    """A GPT-2 model: dropout of the outputs of attention and MLP, and of the embeddings."""

    resid_pdrop: float
    embd_pdrop: float


def read(id: str, config: ConfigReader) -> Gpt2Spec:
    """The spec of a config.json. Raises InputError where dimensions are absurd, and for what no language model uses."""
    for key in ("reorder_and_upcast_attn", "add_cross_attention"):
        if config.boolean(key, False):
            raise NotModelledError(f"{config.origin}: {key} is not planned by tuneplan for GPT-2; remove it, or use plan trace")
    fields = decoder.dimensions(id, config, activation_key="activation_function", defaults=_DEFAULTS, keys=KEYS, rotary=False)
    return Gpt2Spec(
        **fields,
        sliding_window=None,
        resid_pdrop=config.number("resid_pdrop", 0.1, maximum=decoder.MOST_DROPOUT),
        embd_pdrop=config.number("embd_pdrop", 0.1, maximum=decoder.MOST_DROPOUT),
    )


def start(model: Assembly, spec: Gpt2Spec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings of tokens and positions, and the mask; returns what layers share."""
    return with_positions(model, spec.embd_pdrop)


def with_positions(model: Assembly, dropout: float) -> tuple[Block, tuple[Tensor, ...]]:
    """The first block of GPT-2 and its relatives: learned positions are added to the embeddings, which are then dropped."""

    def enter(hidden: Tensor) -> tuple[Tensor, ...]:
        places = decoder.positions(model, "transformer.wpe", model.spec.max_position_embeddings, hidden.shape[1])
        joined = pw.add(model.tape, hidden, places)
        return pw.dropout(model.tape, joined, dropout), hidden, places

    return decoder.start(model, EMBEDDING, (), (None,), enter=enter, exit_held=False)


def layer(model: Assembly, spec: Gpt2Spec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    return layer_of(model, entry, lambda x: _attention(model, spec, x, shared), lambda x: _mlp(model, spec, x))


def layer_of(
    model: Assembly,
    entry: Tensor,
    attention: Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]],
    mlp: Callable[[Tensor], Tensor],
) -> Block:
    """A layer of GPT-2 and its relatives: attention and MLP, each behind a norm and before its residual.

    `attention`: gives its output, dropped, and weights that the layer's code holds; `mlp`: gives its output, dropped.
    """
    tape = model.tape
    normed = model.layer_norm(entry, "ln_1")
    hidden, weights = attention(normed)
    hidden = model.submodule("self_attn", normed, entry, hidden)
    residual = pw.add(tape, hidden, entry)
    normed = model.layer_norm(residual, "ln_2")
    result = model.submodule("mlp", normed, residual, mlp(normed))
    exit = pw.add(tape, residual, result)
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(hidden, normed, result, *weights)
    return close("layer", tape, entry, exit)


def _attention(model: Assembly, spec: Gpt2Spec, x: Tensor, masks: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Self-attention; also returns attention weights that the layer's code holds (eager)."""
    tape = model.tape
    kernel = kernel_of(model, spec, x, None)
    fused = model.linear(x, "attn.c_attn", 3 * spec.hidden_size, bias=True, conv1d=True)
    copied = not fuses_values(spec, kernel)
    parts = pw.split(tape, fused, [x.shape] * 3)
    q, k, v = (heads_first(model, split_heads(model, part, spec.head_dim), copied) for part in parts)
    tape.scope = "attn"
    out, weights, held = attend(model, spec, kernel, (q, k, v), masks, wide=False)
    tape.scope = ""
    y = model.linear(out, "attn.c_proj", spec.hidden_size, bias=True, conv1d=True)
    dropped = pw.dropout(tape, y, spec.resid_pdrop)
    tape.hold(x, y, *held)
    return dropped, weights


def _mlp(model: Assembly, spec: Gpt2Spec, x: Tensor) -> Tensor:
    tape = model.tape
    wide = model.linear(x, "mlp.c_fc", spec.intermediate_size, bias=True, conv1d=True)
    tape.scope = "mlp"
    active = activation(tape, wide, spec.hidden_act)
    tape.scope = ""
    y = model.linear(active, "mlp.c_proj", spec.hidden_size, bias=True, conv1d=True)
    return pw.dropout(tape, y, spec.resid_pdrop)


def finish(model: Assembly, spec: DecoderSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, model.layer_norm(entry, "transformer.ln_f"), EMBEDDING, "lm_head")
