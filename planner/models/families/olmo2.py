"""OLMo 2 and 3: norms after attention and MLP instead of before, and over all queries and keys before they are split into heads.

Mirrors transformers 5.23 models/olmo2/modeling_olmo2.py and models/olmo3/modeling_olmo3.py, whose layers have windows by kind.
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
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 50304,
}
_WINDOW, _FULL_EVERY = 4096, 4


@dataclass(frozen=True, slots=True)
class Olmo2Spec(DecoderSpec):
    """An OLMo 2 or 3 model; `attention_bias`: biases on q, k, v and o; `layer_types`: of each layer."""

    attention_bias: bool
    layer_types: tuple[str, ...]


def read(id: str, config: ConfigReader) -> Olmo2Spec:
    """The spec of a config.json. Raises InputError where dimensions are missing, absurd or contradict each other."""
    second = config.text("model_type") == "olmo2"
    fields = decoder.dimensions(id, config, defaults=_DEFAULTS)
    layers = fields["num_hidden_layers"]
    return Olmo2Spec(
        **fields,
        sliding_window=None if second else config.integer("sliding_window", _WINDOW, maximum=2**30),
        attention_bias=config.boolean("attention_bias", False),
        layer_types=(FULL,) * layers if second else layer_types(config, layers, _FULL_EVERY, key=""),
    )


def start(model: Assembly, spec: Olmo2Spec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, rotary tables and the mask; returns what layers share."""
    windows = (None,) if spec.sliding_window is None else (None, spec.sliding_window)
    return decoder.start(model, EMBEDDING, (spec.head_dim,) * 2 * len(_kinds(spec)), windows, wide_tables=True)


def _kinds(spec: Olmo2Spec) -> tuple[str, ...]:
    """The kinds of layers, each of which has tables of its own."""
    return tuple([kind for kind in (FULL, SLIDING) if kind in spec.layer_types])


def layer_form(model: Assembly, spec: Olmo2Spec, index: int) -> object:
    """Layers differ in their tables, and where each kind has a mask of its own (eager), or only one kind gets one."""
    kind = spec.layer_types[index]
    return kind, decoder.layer_mask(model, kind, window_of(spec.layer_types, index, spec.sliding_window))


def layer(model: Assembly, spec: Olmo2Spec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    tape = model.tape
    hidden, weights = _attention(model, spec, entry, shared)
    hidden = _norm(model, model.submodule("self_attn", entry, entry, hidden), "post_attention_layernorm")
    residual = pw.add(tape, entry, hidden)
    hidden = model.submodule("mlp", residual, residual, gated_mlp(model, spec, residual))
    exit = pw.add(tape, residual, _norm(model, hidden, "post_feedforward_layernorm"))
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(*weights)
    return close("layer", tape, entry, exit)


def _norm(model: Assembly, x: Tensor, module: str) -> Tensor:
    return model.rms_norm(x, module, pw.rms_norm_wide)


def _attention(model: Assembly, spec: Olmo2Spec, x: Tensor, shared: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Self-attention; also returns attention weights that the layer's code holds (eager)."""

    def split(y: Tensor, norm: str) -> Tensor:
        return split_heads(model, _norm(model, y, f"self_attn.{norm}") if norm else y, spec.head_dim)

    assert model.layer is not None
    window = window_of(spec.layer_types, model.layer, spec.sliding_window)
    kinds = _kinds(spec)
    place = 2 * kinds.index(spec.layer_types[model.layer])
    tables, masks = shared[place : place + 2], shared[2 * len(kinds) :]
    if spec.sliding_window is not None:  # the window's mask is the last one
        masks = masks[:-1] if window is None else masks[-1:]
    shared = (*tables, *masks)
    kernel = kernel_of(model, spec, x, window)
    heads = projected(model, spec, kernel, x, spec.attention_bias, split)
    return attended(model, spec, kernel, x, heads, shared, spec.attention_bias, cast_back=True)


def finish(model: Assembly, spec: Olmo2Spec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, _norm(model, entry, "model.norm"), EMBEDDING, "lm_head")
