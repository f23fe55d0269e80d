"""OPT: learned positions, biases everywhere, norms before (or, in the 350M model, after) attention and MLP.

Mirrors transformers 5.23 models/opt/modeling_opt.py.
"""

from dataclasses import dataclass

from tuneplan.planner.errors import InputError, NotModelledError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.activations import activation
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attend, fuses_values, heads_first, kernel_of, split_heads
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec

LAYERS = "model.decoder.layers.*."
EMBEDDING = "model.decoder.embed_tokens"
_KEYS = {"intermediate_size": "ffn_dim", "num_key_value_heads": "", "head_dim": ""}
_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "max_position_embeddings": 2048,
    "vocab_size": 50272,
    "hidden_act": "relu",
    "tie_word_embeddings": True,
}
_OFFSET = 2
"""Rows of the table of positions before the first position."""


@dataclass(frozen=True, slots=True)
class OptSpec(DecoderSpec):
    """An OPT model.

    Attributes:
        bias: biases of all projections.
        norm_first: norms stand before attention and MLP, and one at the end of the model.
        final_norm: the model ends with a norm.
        dropout: of the outputs of attention and MLP.
        word_embed_proj_dim: width of the embeddings, which two projections bring to and from `hidden_size` where it differs.
    """

    bias: bool
    norm_first: bool
    final_norm: bool
    dropout: float
    word_embed_proj_dim: int


def read(id: str, config: ConfigReader) -> OptSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd, and for layers that are dropped at random."""
    if config.number("layerdrop", 0.0, maximum=1.0):
        raise InputError(f"{config.origin}: layerdrop skips layers at random, so that no step is like another; set it to 0")
    if not config.boolean("layer_norm_elementwise_affine", True):
        raise NotModelledError(f"{config.origin}: layer_norm_elementwise_affine=false is not planned by tuneplan; use plan trace")
    fields = decoder.dimensions(id, config, activation_key="activation_function", defaults=_DEFAULTS, keys=_KEYS, rotary=False)
    norm_first = config.boolean("do_layer_norm_before", True)
    return OptSpec(
        **fields,
        sliding_window=None,
        bias=config.boolean("enable_bias", True),
        norm_first=norm_first,
        final_norm=norm_first and not config.boolean("_remove_final_layer_norm", False),
        dropout=config.number("dropout", 0.1, maximum=decoder.MOST_DROPOUT),
        word_embed_proj_dim=config.integer("word_embed_proj_dim", fields["hidden_size"]),
    )


def start(model: Assembly, spec: OptSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings of tokens and positions, and the mask; returns what layers share."""

    def enter(hidden: Tensor) -> tuple[Tensor, ...]:
        batch, length = hidden.shape[:2]
        if spec.word_embed_proj_dim != spec.hidden_size:
            hidden = model.linear(hidden, "model.decoder.project_in", spec.hidden_size)
        rows = spec.max_position_embeddings + _OFFSET
        places = decoder.positions(model, "model.decoder.embed_positions", rows, length, batch)
        return pw.add(model.tape, hidden, places), hidden, places

    return decoder.start(model, EMBEDDING, (), (None,), enter=enter, exit_held=False, width=spec.word_embed_proj_dim)


def layer(model: Assembly, spec: OptSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    tape = model.tape
    hidden = model.layer_norm(entry, "self_attn_layer_norm") if spec.norm_first else entry
    hidden, weights = _attention(model, spec, hidden, shared)
    hidden = model.submodule("self_attn", entry, entry, hidden)
    residual = pw.add(tape, entry, pw.dropout(tape, hidden, spec.dropout))
    if not spec.norm_first:
        residual = model.layer_norm(residual, "self_attn_layer_norm")
    shape = residual.shape
    residual = tape.view("flatten", residual, (shape[0] * shape[1], shape[2]))
    normed = model.layer_norm(residual, "final_layer_norm") if spec.norm_first else residual
    wide = model.linear(normed, "fc1", spec.intermediate_size, spec.bias)
    active = activation(tape, wide, spec.hidden_act)
    hidden = model.submodule("mlp", normed, residual, model.linear(active, "fc2", spec.hidden_size, spec.bias))
    hidden = pw.dropout(tape, hidden, spec.dropout)
    exit = tape.view("unflatten", pw.add(tape, residual, hidden), shape)
    if not spec.norm_first:
        before = exit
        exit = model.layer_norm(exit, "final_layer_norm")
        tape.hold(before)
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(residual, *weights)
    return close("layer", tape, entry, exit)


def _attention(model: Assembly, spec: OptSpec, x: Tensor, masks: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Self-attention; also returns attention weights that the layer's code holds (eager)."""
    tape = model.tape
    kernel = kernel_of(model, spec, x, None)
    copied = not fuses_values(spec, kernel)
    q = pw.scale(tape, model.linear(x, "self_attn.q_proj", spec.hidden_size, spec.bias))
    k, v = (model.linear(x, f"self_attn.{name}_proj", spec.hidden_size, spec.bias) for name in "kv")
    q, k, v = (heads_first(model, split_heads(model, part, spec.head_dim), copied) for part in (q, k, v))
    tape.scope = "self_attn"
    out, weights, held = attend(model, spec, kernel, (q, k, v), masks)
    tape.scope = ""
    y = model.linear(out, "self_attn.out_proj", spec.hidden_size, spec.bias)
    tape.hold(x, *held)
    return y, weights


def finish(model: Assembly, spec: OptSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    hidden = model.layer_norm(entry, "model.decoder.final_layer_norm") if spec.final_norm else entry
    if spec.word_embed_proj_dim != spec.hidden_size:
        hidden = model.linear(hidden, "model.decoder.project_out", spec.word_embed_proj_dim)
    return decoder.finish(model, spec, entry, hidden, EMBEDDING, "lm_head")
