"""Llama-Nemotron models out of an architecture search (Super 49B, Ultra 253B): Llama with sizes of each layer's own.

transformers has no code for them. A layer is Llama's (transformers 5.23 models/llama/modeling_llama.py) with its own number of
key/value heads and its own width inside, or without attention or MLP, and then without the norm before it; or with one linear in
place of either. Widths follow from `ffn_mult` as in the model's code (2/3 of it times hidden_size, up to a multiple of 256),
which vLLM's models/nemotron_nas.py and llama.cpp's conversion repeat. The config's code (`auto_map`) is not run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tuneplan.planner.errors import InputError, NotModelledError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attended, gated_mlp, kernel_of, projected, split_heads
from tuneplan.planner.models.config import MAXIMUM_INTEGER, ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec

LAYERS = "model.layers.*."
EMBEDDING = "model.embed_tokens"
MULTIPLE = 256
"""To which widths are rounded up."""
MOST_MULT = 100.0
_OTHER = ("is_mamba", "is_llama4", "mamba", "llama4", "moe", "sparsify", "window_length", "num_sink_tokens", "parallel_blocks")
"""Of an entry of `block_configs`: what other layers than these have."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's own sizes.

    Attributes:
        group: query heads of a key/value head; 0 without attention.
        width: inside the MLP; 0 without one.
        linear_attention: one linear takes the place of attention.
        linear_mlp: one linear takes the place of the MLP.
    """

    group: int = 0
    width: int = 0
    linear_attention: bool = False
    linear_mlp: bool = False

    @property
    def name(self) -> str:
        """What distinguishes its weights."""
        attention = "linear" if self.linear_attention else str(self.group or "none")
        return f"attention {attention}, mlp {'linear' if self.linear_mlp else self.width or 'none'}"


@dataclass(frozen=True, slots=True)
class NemotronNasSpec(DecoderSpec):
    """Llama with layers of several kinds.

    `intermediate_size` is that of the widest layer and `num_key_value_heads` that of the one with the most.

    Attributes:
        layers: sizes of each.
        attention_bias: q, k, v and o have biases.
        mlp_bias: the MLP's linears have biases.
        widest: width of the widest layer on one rank or many, which `intermediate_size` is on one.
    """

    layers: tuple[Layer, ...]
    attention_bias: bool
    mlp_bias: bool
    widest: int


def read(id: str, config: ConfigReader) -> NemotronNasSpec:
    """The spec of a config.json. Raises InputError where dimensions are missing, absurd or contradict each other."""
    count, heads = config.integer("num_hidden_layers", maximum=2**12), config.integer("num_attention_heads", maximum=2**16)
    hidden = config.integer("hidden_size")
    entries = config.mapping.get("block_configs")
    config.asked.add("block_configs")
    if not isinstance(entries, list) or len(entries) != count or not all(isinstance(entry, Mapping) for entry in entries):
        raise InputError(f"{config.origin}: 'block_configs' must be a list of {count} objects, one for each layer")
    layers = tuple(_layer(ConfigReader(e, f"{config.origin}, block_configs[{i}]"), heads, hidden) for i, e in enumerate(entries))
    widest = max(layer.width for layer in layers)
    most = max((heads // layer.group for layer in layers if layer.group), default=heads)
    sizes = {"intermediate_size": widest or 1, "num_key_value_heads": most}
    fields = decoder.dimensions(id, ConfigReader({**config.mapping, **sizes}, config.origin, config.asked))
    return NemotronNasSpec(
        **fields,
        sliding_window=None,
        layers=layers,
        attention_bias=config.boolean("attention_bias", False),
        mlp_bias=config.boolean("mlp_bias", False),
        widest=fields["intermediate_size"],
    )


def _layer(entry: ConfigReader, heads: int, hidden: int) -> Layer:
    """An entry of `block_configs`. Raises NotModelledError for layers of other kinds."""
    attention, mlp = entry.section("attention"), entry.section("ffn")
    for part in (attention, mlp):
        other = [key for key in _OTHER if part.mapping.get(key)]
        if other:
            raise NotModelledError(f"{part.origin}: {other[0]} is not planned by tuneplan")
    group = width = 0
    alone, flat = attention.boolean("replace_with_linear", False), mlp.boolean("replace_with_linear", False)
    if not attention.boolean("no_op", False) and not alone:
        group = attention.integer("n_heads_in_group", maximum=heads)
        if heads % group:
            raise InputError(f"{attention.origin}: n_heads_in_group={group} does not divide num_attention_heads={heads}")
    if not mlp.boolean("no_op", False) and not flat:
        width = _width(mlp, hidden)
    return Layer(group, width, alone and not attention.boolean("no_op", False), flat and not mlp.boolean("no_op", False))


def _width(mlp: ConfigReader, hidden: int) -> int:
    """The width of an MLP: as it is given, or by its multiple of the hidden states'."""
    if mlp.has("intermediate_size"):
        return mlp.integer("intermediate_size")
    found = int(2 * mlp.number("ffn_mult", maximum=MOST_MULT) * hidden / 3)
    width = -(-found // MULTIPLE) * MULTIPLE
    if not 1 <= width <= MAXIMUM_INTEGER:
        raise InputError(f"{mlp.origin}: 'ffn_mult' gives an MLP of {width} columns; correct the file")
    return width


def start(model: Assembly, spec: NemotronNasSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, rotary tables and the mask; returns what layers share."""
    return decoder.start(model, EMBEDDING, (spec.head_dim,) * 2, (None,))


def layer_kind(spec: NemotronNasSpec, index: int) -> str:
    """What distinguishes a layer's weights."""
    return spec.layers[index].name


def layer(model: Assembly, spec: NemotronNasSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    assert model.layer is not None
    own, tape = spec.layers[model.layer], model.tape
    exit, weights = entry, ()
    if own.group or own.linear_attention:
        normed = model.rms_norm(entry, "input_layernorm")
        hidden, weights = _attention(model, spec, own, normed, shared)
        exit = pw.add(tape, entry, model.submodule("self_attn", normed, entry, hidden))
    if own.width or own.linear_mlp:
        residual = exit
        normed = model.rms_norm(residual, "post_attention_layernorm")
        exit = pw.add(tape, residual, model.submodule("mlp", normed, residual, _mlp(model, spec, own, normed)))
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    if exit is entry:
        raise NotModelledError(f"{spec.id}: layer {model.layer} has neither attention nor an MLP, which is not planned")
    tape.hold(*weights)
    return close("layer", tape, entry, exit)


def _attention(
    model: Assembly, spec: NemotronNasSpec, own: Layer, x: Tensor, shared: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Any, ...]]:
    """Self-attention, or the linear in its place; also attention weights that the layer's code holds (eager)."""
    if own.linear_attention:
        return model.linear(x, "self_attn.linear_attn", spec.hidden_size), ()
    local = replace(spec, num_key_value_heads=max(1, spec.num_attention_heads // own.group))
    kernel = kernel_of(model, local, x, None)
    heads = projected(model, local, kernel, x, spec.attention_bias, lambda y, _: split_heads(model, y, spec.head_dim))
    return attended(model, local, kernel, x, heads, shared, spec.attention_bias)


def _mlp(model: Assembly, spec: NemotronNasSpec, own: Layer, x: Tensor) -> Tensor:
    """The gated MLP, or the linear in its place; a rank of several has its part of every width."""
    if own.linear_mlp:
        return model.linear(x, "mlp.linear_mlp", spec.hidden_size)
    return gated_mlp(model, spec, x, spec.mlp_bias, width=own.width * spec.intermediate_size // spec.widest)


def finish(model: Assembly, spec: NemotronNasSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, model.rms_norm(entry, "model.norm"), EMBEDDING, "lm_head")
