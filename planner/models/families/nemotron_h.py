"""Nemotron-H and Nemotron 3: a layer is one mixer: Mamba 2, attention without positions, an MLP, or experts.

Mirrors transformers 5.23 models/nemotron_h/modeling_nemotron_h.py. Layers for the prediction of further tokens are not built
there.
"""

from dataclasses import dataclass

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.activations import activation
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.methods.targeted import Targeted
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attended, kernel_of, projected
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec
from tuneplan.planner.models.expert_weights import Experts
from tuneplan.planner.models.layer_kinds import ATTENTION, EXPERTS, MLP, RECURRENT, mixers
from tuneplan.planner.models.moe import grouped_sigmoid_router, run_experts
from tuneplan.planner.models.router_logits import KEPT, asked
from tuneplan.planner.models.state_space import TORCH_NOTE, StateSpace, refuse_states, state_space_mixer

LAYERS = "model.layers.*."
EMBEDDING = "model.embeddings"
ADAPTED = ("in_proj", "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
LORA_TYPES = ("LORA", "ADALORA")
_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 21504,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 131072,
    "max_position_embeddings": 4096,
    "hidden_act": "relu2",
}


@dataclass(frozen=True, slots=True)
class NemotronHSpec(DecoderSpec):
    """A Nemotron-H model.

    Attributes:
        mixers: of each layer, "linear_attention" (a state), "full_attention", "mlp" or "moe".
        sizes: of the layers with a state.
        mlp_bias: MLPs have biases.
        num_experts: routed experts of a layer with experts; 0 where no layer has any.
        top_k: routed experts of a token.
        moe_intermediate_size: width inside a routed expert.
        shared_size: width of the shared expert.
        latent: columns of what routed experts take, 0 for the hidden states themselves.
        groups: groups that experts are in.
        norm_topk: the weights of a token's experts are divided by their sum.
    """

    mixers: tuple[str, ...]
    sizes: StateSpace
    mlp_bias: bool
    num_experts: int
    top_k: int
    moe_intermediate_size: int
    shared_size: int
    latent: int
    groups: int
    norm_topk: bool


def read(id: str, config: ConfigReader) -> NemotronHSpec:
    """The spec of a config.json. Raises InputError where dimensions are missing, absurd or contradict each other."""
    kinds = mixers(config, 0, (RECURRENT, ATTENTION, MLP, EXPERTS), "")
    given = ConfigReader({**config.mapping, "num_hidden_layers": len(kinds)}, config.origin)
    fields = decoder.dimensions(id, given, activation_key="mlp_hidden_act", defaults=_DEFAULTS, rotary=False)
    config.asked.update(given.asked)
    count = config.integer("n_routed_experts", 8, maximum=2**16) if EXPERTS in kinds else 0
    top_k = config.integer("num_experts_per_tok", 2, maximum=2**10) if count else 0
    if top_k > count:
        raise InputError(f"{config.origin}: num_experts_per_tok={top_k}, but there are {count} experts; check the config")
    groups = config.integer("n_group", 1, maximum=2**10)
    if count and (count % groups or count // groups < 2):
        raise InputError(f"{config.origin}: n_group={groups} does not part the {count} experts; check the config")
    return NemotronHSpec(
        **fields,
        sliding_window=None,
        mixers=kinds,
        sizes=_sizes(config),
        mlp_bias=config.boolean("mlp_bias", False),
        num_experts=count,
        top_k=top_k,
        moe_intermediate_size=config.integer("moe_intermediate_size", 7688) if count else 0,
        shared_size=config.integer("moe_shared_expert_intermediate_size", 7688) if count else 0,
        latent=(config.optional_integer("moe_latent_size") or 0) if count else 0,
        groups=groups,
        norm_topk=config.boolean("norm_topk_prob", True),
        note=TORCH_NOTE,
        router_logits=asked(config, KEPT) if count else "",
    )


def _sizes(config: ConfigReader) -> StateSpace:
    def either(old: str, name: str) -> str:
        return old if config.has(old) else name

    sizes = StateSpace(
        heads=config.integer("mamba_num_heads", 128, maximum=2**16),
        head_dim=config.integer("mamba_head_dim", 64, maximum=2**14),
        groups=config.integer(either("mamba_n_groups", "n_groups"), 8, maximum=2**14),
        state=config.integer("ssm_state_size", 128, maximum=2**14),
        conv_width=config.integer(either("mamba_d_conv", "conv_kernel"), 4, maximum=2**10),
        conv_bias=config.boolean(either("mamba_conv_bias", "use_conv_bias"), True),
        bias=config.boolean("use_bias", False),
        chunk=config.integer(either("mamba_chunk_size", "chunk_size"), 128, maximum=2**20),
        act=config.text("mamba_hidden_act", "silu"),
    )
    sizes.check(config.origin)
    return sizes


def start(model: Assembly, spec: NemotronHSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings and the mask; returns what layers share."""
    refuse_states(model, spec.id)
    return decoder.start(model, EMBEDDING, (), (None,))


def layer_kind(spec: NemotronHSpec, index: int) -> str:
    """The mixer."""
    return spec.mixers[index]


def layer(model: Assembly, spec: NemotronHSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A norm, a mixer and the sum. `entry`: the hidden states `(batch, length, hidden_size)`."""
    assert model.layer is not None
    tape, kind = model.tape, spec.mixers[model.layer]
    normed = _norm(model, entry, "norm")
    weights: tuple[Tensor, ...] = ()
    if kind == RECURRENT:
        _refuse_adapters(model, spec)
        hidden = state_space_mixer(model, spec.sizes, normed, "mixer", spec.hidden_size)
    elif kind == ATTENTION:
        kernel = kernel_of(model, spec, normed, None)
        heads = projected(model, spec, kernel, normed, module="mixer", rotary=False)
        hidden, weights = attended(model, spec, kernel, normed, heads, shared, output="mixer.o_proj", rotary=False)
    else:
        hidden = _mlp(model, spec, normed, "mixer", spec.intermediate_size) if kind == MLP else _experts(model, spec, normed)
    name = "self_attn" if kind in (RECURRENT, ATTENTION) else "mlp"
    exit = pw.add(tape, entry, model.submodule(name, normed, entry, hidden))
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(*weights)
    return close("layer", tape, entry, exit)


def _refuse_adapters(model: Assembly, spec: NemotronHSpec) -> None:
    """Raise InputError where PEFT does: LoRA on `out_proj` (`_check_lora_target_modules_mamba` of peft 0.21)."""
    for part in model.method.parts:
        kind = (part.peft_config() or {}).get("peft_type")
        if kind in LORA_TYPES and isinstance(part, Targeted) and part.targets(model.path("mixer.out_proj"), model.layer):
            raise InputError(
                f"peft refuses {part.label} on out_proj of {spec.model_type}, which all-linear means too; name the modules, "
                f"such as target_modules={','.join(ADAPTED)}"
            )


def _norm(model: Assembly, x: Tensor, module: str) -> Tensor:
    dtype = model.weight(module, (x.shape[-1],), "norm").dtype
    return model.rms_norm(pw.cast(model.tape, x, dtype), module, pw.rms_norm_cast)


def _mlp(model: Assembly, spec: NemotronHSpec, x: Tensor, module: str, width: int) -> Tensor:
    tape = model.tape
    wide = model.linear(x, f"{module}.up_proj", width, spec.mlp_bias)
    tape.scope = module
    active = activation(tape, wide, spec.hidden_act)
    tape.scope = ""
    y = model.linear(active, f"{module}.down_proj", spec.hidden_size, spec.mlp_bias)
    tape.hold(x)
    return y


def _experts(model: Assembly, spec: NemotronHSpec, x: Tensor) -> Tensor:
    """Routed experts, in a narrower space where there is one, and a shared one."""
    tape = model.tape
    batch, length, width = x.shape
    flat = tape.view("view", x, (batch * length, width))
    routed = grouped_sigmoid_router(model, "mixer.gate", flat, spec.num_experts, spec.top_k, spec.groups, spec.norm_topk)
    inner = model.linear(flat, "mixer.fc1_latent_proj", spec.latent, spec.mlp_bias) if spec.latent else flat
    columns, inside = spec.latent or width, spec.moe_intermediate_size
    experts = Experts("mixer.experts", spec.num_experts, spec.top_k, columns, inside, spec.hidden_act, gated=False)
    y = run_experts(model, inner, routed, experts)
    if spec.latent:
        y = model.linear(y, "mixer.fc2_latent_proj", width, spec.mlp_bias)
    y = tape.view("view", y, x.shape)
    beside = _mlp(model, spec, x, "mixer.shared_experts", spec.shared_size)
    total = pw.add(tape, y, beside)
    tape.hold(x, y, beside, *routed.held, routed.weights, routed.experts)
    return total


def finish(model: Assembly, spec: NemotronHSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, _norm(model, entry, "model.norm_f"), EMBEDDING, "lm_head", "float")
