"""GraniteMoe: Granite's attention and multipliers, and a mixture of experts in place of the MLP of every layer.

Mirrors transformers 5.23 models/granitemoe/modeling_granitemoe.py.
"""

from dataclasses import dataclass

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph import routing as rt
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attended, kernel_of, projected
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec
from tuneplan.planner.models.expert_weights import Experts
from tuneplan.planner.models.moe import Routed, router_logits, run_experts
from tuneplan.planner.models.router_logits import asked

LAYERS = "model.layers.*."
EMBEDDING = "model.embed_tokens"
SPARSE = "block_sparse_moe"


@dataclass(frozen=True, slots=True)
class GraniteMoeSpec(DecoderSpec):
    """A GraniteMoe model; its experts are as wide as `intermediate_size` says."""

    num_experts: int
    top_k: int
    attention_bias: bool


def read(id: str, config: ConfigReader) -> GraniteMoeSpec:
    """The spec of a config.json. Raises InputError where dimensions are missing, absurd or contradict each other."""
    count, top_k = config.integer("num_local_experts", 8, maximum=2**16), config.integer("num_experts_per_tok", 2, maximum=2**10)
    if top_k > count:
        raise InputError(f"{config.origin}: num_experts_per_tok={top_k}, but there are {count} experts; check the config")
    return GraniteMoeSpec(
        **decoder.dimensions(id, config),
        sliding_window=None,
        num_experts=count,
        top_k=top_k,
        attention_bias=config.boolean("attention_bias", False),
        router_logits=asked(config),
    )


def start(model: Assembly, spec: GraniteMoeSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, rotary tables and the mask; returns what layers share."""
    return decoder.start(model, EMBEDDING, (spec.head_dim,) * 2, (None,), after="embedding_multiplier")


def layer(model: Assembly, spec: GraniteMoeSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    tape = model.tape
    normed = model.rms_norm(entry, "input_layernorm")
    kernel = kernel_of(model, spec, normed, None)
    heads = projected(model, spec, kernel, normed, spec.attention_bias)
    hidden, weights = attended(model, spec, kernel, normed, heads, shared, spec.attention_bias)
    residual = residual_sum(model, entry, model.submodule("self_attn", normed, entry, hidden))
    normed = model.rms_norm(residual, "post_attention_layernorm")
    exit = residual_sum(model, residual, model.submodule(SPARSE, normed, residual, sparse_block(model, spec, normed)))
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(*weights)
    return close("layer", tape, entry, exit)


def residual_sum(model: Assembly, residual: Tensor, hidden: Tensor) -> Tensor:
    """`residual + hidden * residual_multiplier`."""
    return pw.add(model.tape, residual, pw.scale(model.tape, hidden, "residual_multiplier"))


def sparse_block(model: Assembly, spec: GraniteMoeSpec, x: Tensor) -> Tensor:
    """The sparse block: `(batch, length, hidden)` -> the same."""
    tape = model.tape
    batch, length, width = x.shape
    flat = tape.view("reshape", x, (batch * length, width))
    routed = _router(model, spec, flat)
    experts = Experts(f"{SPARSE}.experts", spec.num_experts, spec.top_k, width, spec.intermediate_size, spec.hidden_act)
    y = run_experts(model, flat, routed, experts)
    tape.hold(flat, *routed.held, routed.weights, routed.experts)
    return tape.view("view", y, x.shape)


def _router(model: Assembly, spec: GraniteMoeSpec, x: Tensor) -> Routed:
    """`GraniteMoeTopKRouter`: the best logits in fp32, then their softmax, cast back."""
    tape = model.tape
    logits = router_logits(model, f"{SPARSE}.router", x, spec.num_experts, wide=True)
    values, chosen = rt.topk(tape, logits, spec.top_k)
    weights = pw.cast(tape, pw.softmax(tape, values), x.dtype)
    tape.hold(values)
    tape.scope = ""
    return Routed(weights, chosen, (logits,))


def finish(model: Assembly, spec: GraniteMoeSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, model.rms_norm(entry, "model.norm"), EMBEDDING, "lm_head", "scale")
