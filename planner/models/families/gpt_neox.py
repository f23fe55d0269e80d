"""GPT-NeoX and Pythia: fused queries, keys and values head by head, attention and MLP beside each other, heads rotated in part.

Mirrors transformers 5.23 models/gpt_neox/modeling_gpt_neox.py.
"""

from dataclasses import dataclass

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attended, heads_first, kernel_of, plain_mlp
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec

LAYERS = "gpt_neox.layers.*."
EMBEDDING = "gpt_neox.embed_in"
_DEFAULTS = {
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "vocab_size": 50432,
    "hidden_act": "gelu",
}
_ROTATED = 0.25


@dataclass(frozen=True, slots=True)
class GptNeoxSpec(DecoderSpec):
    """A GPT-NeoX model.

    Attributes:
        rotary_width: columns of each head that are rotated.
        attention_bias: biases of the projections of attention.
        parallel: attention and MLP both read the layer's input.
        hidden_dropout: dropout of embeddings and of the outputs of attention and MLP.
    """

    rotary_width: int
    attention_bias: bool
    parallel: bool
    hidden_dropout: float


def read(id: str, config: ConfigReader) -> GptNeoxSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    keys = {"num_key_value_heads": "", "head_dim": ""}
    fields = decoder.dimensions(id, config, defaults=_DEFAULTS, keys=keys)
    return GptNeoxSpec(
        **fields,
        sliding_window=None,
        rotary_width=decoder.rotary_width(config, fields["head_dim"], _ROTATED, "rotary_pct"),
        attention_bias=config.boolean("attention_bias", True),
        parallel=config.boolean("use_parallel_residual", True),
        hidden_dropout=config.number("hidden_dropout", 0.0, maximum=decoder.MOST_DROPOUT),
    )


def start(model: Assembly, spec: GptNeoxSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, rotary tables and the mask; returns what layers share."""

    def enter(hidden: Tensor) -> tuple[Tensor, ...]:
        return pw.dropout(model.tape, hidden, spec.hidden_dropout), hidden

    drops = bool(spec.hidden_dropout)
    widths = (spec.rotary_width,) * 2
    return decoder.start(model, EMBEDDING, widths, (None,), enter=enter if drops else None, exit_held=not drops)


def layer(model: Assembly, spec: GptNeoxSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    tape = model.tape
    normed = model.layer_norm(entry, "input_layernorm")
    hidden, weights = _attention(model, spec, normed, shared)
    hidden = pw.dropout(tape, model.submodule("self_attn", normed, entry, hidden), spec.hidden_dropout)
    residual = entry if spec.parallel else pw.add(tape, hidden, entry)
    normed = model.layer_norm(residual, "post_attention_layernorm")
    result = plain_mlp(model, spec, normed, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    result = pw.dropout(tape, model.submodule("mlp", normed, residual, result), spec.hidden_dropout)
    if spec.parallel:
        exit = pw.add(tape, pw.add(tape, result, hidden), entry)
        tape.hold(hidden, result)
    else:
        exit = pw.add(tape, result, residual)
        tape.hold(residual, result)
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(*weights)
    return close("layer", tape, entry, exit)


def _attention(model: Assembly, spec: GptNeoxSpec, x: Tensor, shared: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Self-attention; also returns attention weights that the layer's code holds (eager)."""
    tape = model.tape
    kernel = kernel_of(model, spec, x, None)
    batch, length, width = x.shape
    fused = model.linear(x, "attention.query_key_value", 3 * width, spec.attention_bias)
    by_head = tape.view("split_heads", fused, (batch, length, spec.num_attention_heads, 3 * spec.head_dim))
    by_head = heads_first(model, by_head, copied=True)
    q, k, v = pw.split(tape, by_head, [(*by_head.shape[:-1], spec.head_dim)] * 3)
    bias, output = spec.attention_bias, "attention.dense"
    y, weights = attended(model, spec, kernel, x, (q, k, v), shared, bias, output=output, in_parts=True)
    tape.hold(fused)
    return y, weights


def finish(model: Assembly, spec: GptNeoxSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, model.layer_norm(entry, "gpt_neox.final_layer_norm"), EMBEDDING, "lm_head")
