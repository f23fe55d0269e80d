"""Granite 4 (`granitemoehybrid`): Mamba 2 and attention layers, Granite's multipliers, experts beside a shared MLP or that alone.

Mirrors transformers 5.23 models/granitemoehybrid/modeling_granitemoehybrid.py.
"""

from dataclasses import dataclass

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.activations import activation
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attended, kernel_of, projected
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.families.granite_moe import GraniteMoeSpec, residual_sum, sparse_block
from tuneplan.planner.models.layer_kinds import ATTENTION, RECURRENT, mixers
from tuneplan.planner.models.router_logits import asked
from tuneplan.planner.models.state_space import TORCH_NOTE, StateSpace, refuse_states, state_space_mixer

LAYERS = "model.layers.*."
EMBEDDING = "model.embed_tokens"
ROPE = "rope"


@dataclass(frozen=True, slots=True)
class GraniteHybridSpec(GraniteMoeSpec):
    """A Granite 4 model; `num_experts` is 0 for the dense ones.

    Attributes:
        mixers: of each layer, "linear_attention" (a state) or "full_attention".
        sizes: of the layers with a state.
        shared_size: width of the MLP that every layer has.
        rotated: attention has positions.
    """

    mixers: tuple[str, ...]
    sizes: StateSpace
    shared_size: int
    rotated: bool


def read(id: str, config: ConfigReader) -> GraniteHybridSpec:
    """The spec of a config.json. Raises InputError where dimensions are missing, absurd or contradict each other."""
    count = config.integer("num_local_experts", 8, minimum=0, maximum=2**16)
    top_k = config.integer("num_experts_per_tok", 2, minimum=0, maximum=2**10)
    if count and not 1 <= top_k <= count:
        raise InputError(f"{config.origin}: num_experts_per_tok={top_k}, but there are {count} experts; check the config")
    kind = config.text("position_embedding_type", "")
    if kind not in ("", ROPE, "nope"):
        raise InputError(f"{config.origin}: position_embedding_type {kind!r} is not known; transformers has {ROPE!r} and none")
    fields = decoder.dimensions(id, config, rotary=kind == ROPE)
    return GraniteHybridSpec(
        **fields,
        sliding_window=None,
        num_experts=count,
        top_k=top_k,
        attention_bias=config.boolean("attention_bias", False),
        mixers=mixers(config, fields["num_hidden_layers"], (RECURRENT, ATTENTION), RECURRENT),
        sizes=_sizes(config, fields["hidden_size"], fields["hidden_act"]),
        shared_size=config.integer("shared_intermediate_size", 1024),
        rotated=kind == ROPE,
        note=TORCH_NOTE,
        router_logits=asked(config) if count else "",
    )


def _sizes(config: ConfigReader, hidden: int, act: str) -> StateSpace:
    inner = config.integer("mamba_expand", 2, maximum=2**10) * hidden
    heads = config.integer("mamba_n_heads", 128, maximum=2**16)
    given = config.mapping.get("mamba_d_head", "auto")
    columns = inner // heads if given == "auto" else config.integer("mamba_d_head", maximum=2**14)
    if heads * columns != inner:
        raise InputError(
            f"{config.origin}: mamba_n_heads={heads} of {columns} columns are not mamba_expand x hidden_size = {inner}; "
            "check them"
        )
    sizes = StateSpace(
        heads=heads,
        head_dim=columns,
        groups=config.integer("mamba_n_groups", 1, maximum=2**14),
        state=config.integer("mamba_d_state", 256, maximum=2**14),
        conv_width=config.integer("mamba_d_conv", 4, maximum=2**10),
        conv_bias=config.boolean("mamba_conv_bias", True),
        bias=config.boolean("mamba_proj_bias", False),
        chunk=config.integer("mamba_chunk_size", 256, maximum=2**20),
        act=act,
    )
    sizes.check(config.origin)
    return sizes


def start(model: Assembly, spec: GraniteHybridSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, rotary tables where there are positions, and the mask; returns what layers share."""
    refuse_states(model, spec.id)
    widths = (spec.head_dim,) * 2 if spec.rotated else ()
    return decoder.start(model, EMBEDDING, widths, (None,), after="embedding_multiplier")


def layer_kind(spec: GraniteHybridSpec, index: int) -> str:
    """What mixes the tokens."""
    return spec.mixers[index]


def layer(model: Assembly, spec: GraniteHybridSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    assert model.layer is not None
    tape = model.tape
    normed = model.rms_norm(entry, "input_layernorm")
    weights: tuple[Tensor, ...] = ()
    if spec.mixers[model.layer] == RECURRENT:
        hidden = state_space_mixer(model, spec.sizes, normed, "mamba", spec.hidden_size)
    else:
        kernel = kernel_of(model, spec, normed, None)
        heads = projected(model, spec, kernel, normed, spec.attention_bias, rotary=spec.rotated)
        hidden, weights = attended(model, spec, kernel, normed, heads, shared, spec.attention_bias, rotary=spec.rotated)
    residual = residual_sum(model, entry, model.submodule("self_attn", normed, entry, hidden))
    normed = model.rms_norm(residual, "post_attention_layernorm")
    exit = residual_sum(model, residual, model.submodule("mlp", normed, residual, _mlp(model, spec, normed)))
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(*weights, *(shared[:2] if spec.rotated else ()))  # every layer is given the tables
    return close("layer", tape, entry, exit)


def _mlp(model: Assembly, spec: GraniteHybridSpec, x: Tensor) -> Tensor:
    """The shared MLP, and what the experts add to it."""
    tape = model.tape
    routed = sparse_block(model, spec, x) if spec.num_experts else None
    wide = model.linear(x, "shared_mlp.input_linear", 2 * spec.shared_size)
    tape.scope = "shared_mlp"
    gate, up = pw.split(tape, wide, [(*x.shape[:-1], spec.shared_size)] * 2)
    product = pw.multiply(tape, activation(tape, gate, spec.hidden_act), up)
    tape.scope = ""
    y = model.linear(product, "shared_mlp.output_linear", spec.hidden_size)
    tape.hold(gate, up)
    if routed is None:
        return y
    total = pw.add(tape, routed, y)
    tape.hold(x, routed)
    return total


def finish(model: Assembly, spec: GraniteHybridSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, model.rms_norm(entry, "model.norm"), EMBEDDING, "lm_head", "scale")
