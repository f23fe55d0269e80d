"""StarCoder2: layer norms with biases, an MLP without a gate, dropout in attention and MLP.

Mirrors transformers 5.23 models/starcoder2/modeling_starcoder2.py.
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
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "num_hidden_layers": 30,
    "num_attention_heads": 24,
    "num_key_value_heads": 2,
    "vocab_size": 49152,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True, slots=True)
class Starcoder2Spec(DecoderSpec):
    """A StarCoder2 model: biases of all projections; dropout of attention's and the MLP's output, and of the embeddings."""

    use_bias: bool
    residual_dropout: float
    embedding_dropout: float


def read(id: str, config: ConfigReader) -> Starcoder2Spec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    return Starcoder2Spec(
        **decoder.dimensions(id, config, defaults=_DEFAULTS),
        sliding_window=config.optional_integer("sliding_window", maximum=2**30),
        use_bias=config.boolean("use_bias", True),
        residual_dropout=config.number("residual_dropout", 0.0, maximum=decoder.MOST_DROPOUT),
        embedding_dropout=config.number("embedding_dropout", 0.0, maximum=decoder.MOST_DROPOUT),
    )


def start(model: Assembly, spec: Starcoder2Spec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, rotary tables and the mask; returns what layers share."""

    def enter(hidden: Tensor) -> tuple[Tensor, ...]:
        return pw.dropout(model.tape, hidden, spec.embedding_dropout), hidden

    drops = bool(spec.embedding_dropout)
    widths = (spec.head_dim,) * 2
    return decoder.start(model, EMBEDDING, widths, (spec.sliding_window,), enter=enter if drops else None, exit_held=not drops)


def layer(model: Assembly, spec: Starcoder2Spec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    tape = model.tape
    normed = model.layer_norm(entry, "input_layernorm")
    kernel = kernel_of(model, spec, normed, spec.sliding_window)
    heads = projected(model, spec, kernel, normed, spec.use_bias)
    hidden, weights = attended(model, spec, kernel, normed, heads, shared, spec.use_bias)
    hidden = pw.dropout(tape, hidden, spec.residual_dropout)
    tape.hold(normed)
    residual = pw.add(tape, entry, model.submodule("self_attn", normed, entry, hidden))
    normed = model.layer_norm(residual, "post_attention_layernorm")
    hidden = pw.dropout(tape, plain_mlp(model, spec, normed, "mlp.c_fc", "mlp.c_proj", spec.use_bias), spec.residual_dropout)
    tape.hold(normed)
    exit = pw.add(tape, residual, model.submodule("mlp", normed, residual, hidden))
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(*weights)
    return close("layer", tape, entry, exit)


def finish(model: Assembly, spec: Starcoder2Spec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, model.layer_norm(entry, "model.norm"), EMBEDDING, "lm_head")
