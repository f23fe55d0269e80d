"""Command R and R7B (Cohere 1 and 2): a layer norm without bias written out in fp32, attention and MLP beside each other.

Mirrors transformers 5.23 models/cohere/modeling_cohere.py and models/cohere2/modeling_cohere2.py. Queries and keys are rotated in
fp32; in Cohere 2 only in the layers with a sliding window.
"""

from dataclasses import dataclass

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attended, gated_mlp, kernel_of, projected, split_heads
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec
from tuneplan.planner.models.layer_kinds import FULL, SLIDING, layer_types, window_of

LAYERS = "model.layers.*."
EMBEDDING = "model.embed_tokens"
_DEFAULTS = {
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_WINDOW, _FULL_EVERY = 4096, 4


@dataclass(frozen=True, slots=True)
class CohereSpec(DecoderSpec):
    """A Cohere model.

    Attributes:
        attention_bias: biases on q, k, v and o.
        head_norm: norms of queries and keys, with weights for each head (Command R+).
        layer_types: of each layer, "sliding_attention" or "full_attention".
        rotates_all: layers with full attention are rotated too (Cohere 1).
    """

    attention_bias: bool
    head_norm: bool
    layer_types: tuple[str, ...]
    rotates_all: bool


def read(id: str, config: ConfigReader) -> CohereSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    first = config.text("model_type") == "cohere"
    fields = decoder.dimensions(id, config, defaults=_DEFAULTS, keys={} if first else {"head_dim": ""})
    layers = fields["num_hidden_layers"]
    return CohereSpec(
        **fields,
        sliding_window=None if first else config.integer("sliding_window", _WINDOW, maximum=2**30),
        attention_bias=config.boolean("attention_bias", False),
        head_norm=first and config.boolean("use_qk_norm", False),
        layer_types=(FULL,) * layers if first else layer_types(config, layers, _FULL_EVERY),
        rotates_all=first,
    )


def start(model: Assembly, spec: CohereSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, rotary tables and the masks; returns what layers share."""
    windows = (None,) if spec.sliding_window is None else (None, spec.sliding_window)
    return decoder.start(model, EMBEDDING, (spec.head_dim,) * 2, windows)


def layer_form(model: Assembly, spec: CohereSpec, index: int) -> object:
    """Layers differ in their mask and, in Cohere 2, in whether they are rotated."""
    return spec.layer_types[index], decoder.masked(model, window_of(spec.layer_types, index, spec.sliding_window))


def layer(model: Assembly, spec: CohereSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    tape = model.tape
    normed = _norm(model, entry, "input_layernorm")
    attention, weights = _attention(model, spec, normed, shared)
    attention = model.submodule("self_attn", normed, entry, attention)
    hidden = model.submodule("mlp", normed, entry, gated_mlp(model, spec, normed))
    exit = pw.add(tape, pw.add(tape, entry, attention), hidden)
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(attention, hidden, *weights)
    return close("layer", tape, entry, exit)


def _norm(model: Assembly, x: Tensor, module: str, heads: int = 0) -> Tensor:
    return model.rms_norm(x, module, pw.cohere_norm, heads)


def _attention(model: Assembly, spec: CohereSpec, x: Tensor, shared: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Self-attention; also returns attention weights that the layer's code holds (eager)."""

    def split(y: Tensor, norm: str) -> Tensor:
        y = split_heads(model, y, spec.head_dim)
        heads = spec.num_attention_heads if norm == "q_norm" else spec.num_key_value_heads
        return _norm(model, y, f"self_attn.{norm}", heads) if norm and spec.head_norm else y

    assert model.layer is not None
    kind = spec.layer_types[model.layer]
    window = window_of(spec.layer_types, model.layer, spec.sliding_window)
    masks = shared[2:]
    if spec.sliding_window is not None:  # the window's mask is the last one
        masks = masks[:-1] if kind == FULL else masks[-1:]
    kernel = kernel_of(model, spec, x, window)
    turned = spec.rotates_all or kind == SLIDING
    heads = projected(model, spec, kernel, x, spec.attention_bias, split, rotary=turned)
    tables = shared[:2] if turned else ()
    given, bias = (*tables, *masks), spec.attention_bias
    return attended(model, spec, kernel, x, heads, given, bias, cast_back=turned, widened=turned, rotary=turned)


def finish(model: Assembly, spec: CohereSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, _norm(model, entry, "model.norm"), EMBEDDING, "lm_head", "scale")
