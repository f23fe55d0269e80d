"""StableLM: layer norms, heads rotated in part, a gated MLP, attention and MLP one after the other or beside each other.

Mirrors transformers 5.23 models/stablelm/modeling_stablelm.py.
"""

from dataclasses import dataclass

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attended, gated_mlp, kernel_of, projected
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec

LAYERS = "model.layers.*."
EMBEDDING = "model.embed_tokens"
_DEFAULTS = {
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 50304,
    "max_position_embeddings": 4096,
}
_ROTATED = 0.25


@dataclass(frozen=True, slots=True)
class StableLmSpec(DecoderSpec):
    """A StableLM model.

    Attributes:
        rotary_width: columns of each head that are rotated.
        use_qkv_bias: biases of queries, keys and values.
        parallel: attention and MLP read the same normed input.
        hidden_dropout: dropout of the MLP's output.
    """

    rotary_width: int
    use_qkv_bias: bool
    parallel: bool
    hidden_dropout: float


def read(id: str, config: ConfigReader) -> StableLmSpec:
    """The spec of a config.json. Raises InputError where it makes no sense, and for norms of each head (StableLM 2 12B)."""
    if config.boolean("qk_layernorm", False):
        raise InputError(
            f"{config.origin}: qk_layernorm has a norm for each head, which is not planned by tuneplan; use plan trace"
        )
    fields = decoder.dimensions(id, config, defaults=_DEFAULTS, keys={"head_dim": ""})
    return StableLmSpec(
        **fields,
        sliding_window=None,
        rotary_width=decoder.rotary_width(config, fields["head_dim"], _ROTATED),
        use_qkv_bias=config.boolean("use_qkv_bias", False),
        parallel=config.boolean("use_parallel_residual", False),
        hidden_dropout=config.number("hidden_dropout", 0.0, maximum=decoder.MOST_DROPOUT),
    )


def start(model: Assembly, spec: StableLmSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, rotary tables and the mask; returns what layers share."""
    return decoder.start(model, EMBEDDING, (spec.rotary_width,) * 2, (None,))


def layer(model: Assembly, spec: StableLmSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    tape = model.tape
    normed = model.layer_norm(entry, "input_layernorm")
    kernel = kernel_of(model, spec, normed, None)
    heads = projected(model, spec, kernel, normed, spec.use_qkv_bias)
    attention, weights = attended(model, spec, kernel, normed, heads, shared, holds_parts=True, in_parts=True)
    attention = model.submodule("self_attn", normed, entry, attention)
    residual = entry
    if not spec.parallel:
        residual = pw.add(tape, entry, attention)
    before = normed if spec.parallel else model.layer_norm(residual, "post_attention_layernorm")
    hidden = model.submodule("mlp", before, residual, gated_mlp(model, spec, before))
    hidden = pw.dropout(tape, hidden, spec.hidden_dropout)
    exit = pw.add(tape, pw.add(tape, residual, attention) if spec.parallel else residual, hidden)
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(normed, attention, residual, hidden, *weights)
    return close("layer", tape, entry, exit)


def finish(model: Assembly, spec: StableLmSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, model.layer_norm(entry, "model.norm"), EMBEDDING, "lm_head")
