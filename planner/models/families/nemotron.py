"""Nemotron (3 8B, 4 15B and 340B, Minitron): layer norms around one, squared ReLU, heads rotated in part.

Mirrors transformers 5.23 models/nemotron/modeling_nemotron.py. Not modelled: `NemotronLayerNorm1P` adds one to its weight, so
that autograd keeps `hidden_size` further values for each norm (0.03 % of a tiny model).
"""

from dataclasses import dataclass

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attended, kernel_of, plain_mlp, projected
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec

LAYERS = "model.layers.*."
EMBEDDING = "model.embed_tokens"
_DEFAULTS = {
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "num_hidden_layers": 32,
    "num_attention_heads": 48,
    "vocab_size": 256000,
    "max_position_embeddings": 4096,
    "hidden_act": "relu2",
}
_ROTATED = 0.5


@dataclass(frozen=True, slots=True)
class NemotronSpec(DecoderSpec):
    """A Nemotron model.

    Attributes:
        rotary_width: columns of each head that are rotated.
        attention_bias: biases of the projections of attention.
        mlp_bias: biases of the MLP.
    """

    rotary_width: int
    attention_bias: bool
    mlp_bias: bool


def read(id: str, config: ConfigReader) -> NemotronSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    fields = decoder.dimensions(id, config, defaults=_DEFAULTS)
    return NemotronSpec(
        **fields,
        sliding_window=None,
        rotary_width=decoder.rotary_width(config, fields["head_dim"], _ROTATED),
        attention_bias=config.boolean("attention_bias", False),
        mlp_bias=config.boolean("mlp_bias", False),
    )


def start(model: Assembly, spec: NemotronSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, rotary tables and the mask; returns what layers share."""
    return decoder.start(model, EMBEDDING, (spec.rotary_width,) * 2, (None,))


def layer(model: Assembly, spec: NemotronSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    tape = model.tape
    normed = model.layer_norm(entry, "input_layernorm")
    kernel = kernel_of(model, spec, normed, None)
    heads = projected(model, spec, kernel, normed, spec.attention_bias)
    attention, weights = attended(model, spec, kernel, normed, heads, shared, spec.attention_bias, in_parts=True)
    residual = pw.add(tape, entry, model.submodule("self_attn", normed, entry, attention))
    normed = model.layer_norm(residual, "post_attention_layernorm")
    hidden = plain_mlp(model, spec, normed, "mlp.up_proj", "mlp.down_proj", bias=spec.mlp_bias)
    exit = pw.add(tape, residual, model.submodule("mlp", normed, residual, hidden))
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(residual, *weights)
    return close("layer", tape, entry, exit)


def finish(model: Assembly, spec: NemotronSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, model.layer_norm(entry, "model.norm"), EMBEDDING, "lm_head")
