"""DeepSeek V2 and V3 (and R1, Kimi K2): latent attention, dense first layers, then routed and shared experts.

Mirrors transformers 5.23 models/deepseek_v2/modeling_deepseek_v2.py and deepseek_v3/modeling_deepseek_v3.py. Layers for the
prediction of further tokens (`num_nextn_predict_layers`) are not built there, and so are not counted.
"""

from dataclasses import dataclass

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph import routing as rt
from tuneplan.planner.graph.block import Block
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import gated_mlp
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec
from tuneplan.planner.models.expert_weights import Experts
from tuneplan.planner.models.latent_attention import Latent, latent_attention, read_latent
from tuneplan.planner.models.moe import Routed, grouped_sigmoid_router, router_logits, run_experts
from tuneplan.planner.models.router_logits import KEPT, asked

LAYERS = "model.layers.*."
EMBEDDING = "model.embed_tokens"
MOE, DENSE = "moe", "dense"
GREEDY, GROUPS = "greedy", "group_limited_greedy"


@dataclass(frozen=True, slots=True)
class DeepseekSpec(DecoderSpec):
    """A DeepSeek model.

    Attributes:
        latent: sizes of the attention.
        first_k_dense_replace: layers with a plain MLP, before those with experts.
        num_experts: routed experts.
        top_k: routed experts of a token.
        moe_intermediate_size: width inside a routed expert.
        shared_experts: experts that take every token; they are one MLP.
        groups: groups that experts are in.
        norm_topk: the weights of a token's experts are divided by their sum (V3).
        topk_method: how V2 chooses.
        mlp_bias: the plain MLPs have biases (V2).
    """

    latent: Latent
    first_k_dense_replace: int
    num_experts: int
    top_k: int
    moe_intermediate_size: int
    shared_experts: int
    groups: int
    norm_topk: bool
    topk_method: str
    mlp_bias: bool


def read(id: str, config: ConfigReader) -> DeepseekSpec:
    """The spec of a config.json. Raises InputError where dimensions are missing, absurd or contradict each other."""
    second = config.text("model_type") == "deepseek_v2"
    rope = config.integer("qk_rope_head_dim", 64, maximum=2**14)
    fields = decoder.dimensions(id, ConfigReader({**config.mapping, "head_dim": rope}, config.origin))
    count = config.integer("n_routed_experts", 64 if second else 256, maximum=2**16)
    top_k = config.integer("num_experts_per_tok", None if second else 8, maximum=2**10)
    if top_k > count:
        raise InputError(f"{config.origin}: num_experts_per_tok={top_k}, but there are {count} experts; check the config")
    method = config.text("topk_method", GREEDY) if second else ""
    if second and method not in (GREEDY, GROUPS):
        raise InputError(f"{config.origin}: topk_method {method!r} is not known; transformers has {GREEDY} and {GROUPS}")
    groups = config.integer("n_group", 1 if second else 8, maximum=2**10)
    if count % groups:
        raise InputError(f"{config.origin}: n_group={groups} does not divide n_routed_experts={count}; check the config")
    return DeepseekSpec(
        **fields,
        sliding_window=None,
        latent=read_latent(config, complex=second),
        first_k_dense_replace=config.integer("first_k_dense_replace", 0 if second else 3, minimum=0),
        num_experts=count,
        top_k=top_k,
        moe_intermediate_size=config.integer("moe_intermediate_size", 1407 if second else 2048),
        shared_experts=config.integer("n_shared_experts", 2 if second else 1),
        groups=groups,
        norm_topk=not second and config.boolean("norm_topk_prob", True),
        topk_method=method,
        mlp_bias=second and config.boolean("mlp_bias", False),
        router_logits=asked(config, KEPT),
    )


def start(model: Assembly, spec: DeepseekSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, rotary tables and the mask; returns what layers share. V2's table holds complex numbers."""
    if spec.latent.complex:
        return decoder.start(model, EMBEDDING, (spec.head_dim,), (None,), wide_tables=True)
    return decoder.start(model, EMBEDDING, (spec.head_dim,) * 2, (None,))


def layer_kind(spec: DeepseekSpec, index: int) -> str:
    """Whether the layer has experts or a plain MLP."""
    return MOE if index >= spec.first_k_dense_replace else DENSE


def layer(model: Assembly, spec: DeepseekSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    assert model.layer is not None
    dense = layer_kind(spec, model.layer) == DENSE

    def attend(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return latent_attention(model, spec, spec.latent, x, shared)

    def feed(x: Tensor) -> Tensor:
        return gated_mlp(model, spec, x, spec.mlp_bias) if dense else _experts(model, spec, x)

    return decoder.pre_norm_layer(model, entry, attend, feed)


def _experts(model: Assembly, spec: DeepseekSpec, x: Tensor) -> Tensor:
    tape = model.tape
    batch, length, width = x.shape
    flat = tape.view("view", x, (batch * length, width))
    if spec.latent.complex:
        routed = _greedy_router(model, spec, flat)
    else:
        routed = grouped_sigmoid_router(model, "mlp.gate", flat, spec.num_experts, spec.top_k, spec.groups, spec.norm_topk)
    experts = Experts("mlp.experts", spec.num_experts, spec.top_k, width, spec.moe_intermediate_size, spec.hidden_act)
    y = run_experts(model, flat, routed, experts)
    y = tape.view("view", y, x.shape)
    inside = spec.moe_intermediate_size * spec.shared_experts
    beside = gated_mlp(model, spec, x, spec.mlp_bias, module="mlp.shared_experts", width=inside)
    total = pw.add(tape, y, beside)
    tape.hold(x, y, beside, *routed.held, routed.weights, routed.experts)
    return total


def _greedy_router(model: Assembly, spec: DeepseekSpec, x: Tensor) -> Routed:
    """`DeepseekV2TopkRouter`: softmax in fp32, then the best, of all or of the best groups."""
    tape = model.tape
    logits = router_logits(model, "mlp.gate", x, spec.num_experts, dtype="fp32")
    scores = pw.softmax(tape, pw.cast(tape, logits, "fp32"))
    held: list[Tensor] = []
    if spec.topk_method == GROUPS:
        shape = (x.shape[0], spec.groups)
        best = tape.record("max", (scores,), tape.fresh(shape, "fp32", False))
        chosen = rt.indices(tape, "topk", shape, "int64", best)
        mask = tape.record("scatter_", (chosen,), tape.fresh(shape, "fp32", False))
        spread = tape.record("reshape", (mask,), tape.fresh(scores.shape, "fp32", False))
        filled, dropped = rt.masked_fill(tape, scores, spread)
        held = [best, chosen, mask, spread, dropped]
        scores = filled
    values, chosen = rt.topk(tape, scores, spec.top_k)
    weights = pw.scale(tape, values)
    tape.hold(scores, *held)
    tape.scope = ""
    return Routed(weights, chosen, (logits,))


def finish(model: Assembly, spec: DeepseekSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, model.rms_norm(entry, "model.norm"), EMBEDDING, "lm_head")
