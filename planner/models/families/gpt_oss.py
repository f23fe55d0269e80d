"""gpt-oss: attention with learned sinks and alternating windows, experts with biases and a clamped gate.

Mirrors transformers 5.23 models/gpt_oss/modeling_gpt_oss.py. Its published weights are in mxfp4; to be trained they are made
dense when they are loaded (`Mxfp4Config(dequantize=True)`), which is what is planned.
"""

from dataclasses import dataclass, replace

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph import routing as rt
from tuneplan.planner.graph.attention_sinks import eager_with_sinks
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.matmul import linear
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import cached, kernel_of, projected, run_kernel
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec
from tuneplan.planner.models.expert_weights import Experts
from tuneplan.planner.models.moe import Routed, run_experts
from tuneplan.planner.models.router_logits import asked, record

LAYERS = "model.layers.*."
EMBEDDING = "model.embed_tokens"
SLIDING, FULL = "sliding_attention", "full_attention"
_DEFAULTS = {"num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072, "vocab_size": 201088}


@dataclass(frozen=True, slots=True)
class GptOssSpec(DecoderSpec):
    """A gpt-oss model; its experts are as wide as `intermediate_size` says."""

    num_experts: int
    top_k: int
    attention_bias: bool
    layer_types: tuple[str, ...]


def read(id: str, config: ConfigReader) -> GptOssSpec:
    """The spec of a config.json. Raises InputError where dimensions are missing, absurd or contradict each other."""
    count, top_k = (
        config.integer("num_local_experts", 128, maximum=2**16),
        config.integer("num_experts_per_tok", 4, maximum=2**10),
    )
    if top_k > count:
        raise InputError(f"{config.origin}: num_experts_per_tok={top_k}, but there are {count} experts; check the config")
    return GptOssSpec(
        **decoder.dimensions(id, config, defaults=_DEFAULTS),
        sliding_window=config.integer("sliding_window", 128, maximum=2**30),
        num_experts=count,
        top_k=top_k,
        attention_bias=config.boolean("attention_bias", True),
        layer_types=_layer_types(config),
        router_logits=asked(config),
    )


def _layer_types(config: ConfigReader) -> tuple[str, ...]:
    """As the config lists them, or every second layer with a window, the first one too."""
    layers = config.integer("num_hidden_layers", maximum=2**12)
    given = config.mapping.get("layer_types")
    if given is None:
        return tuple([SLIDING if (index + 1) % 2 else FULL for index in range(layers)])
    if not isinstance(given, list) or len(given) != layers or any(kind not in (SLIDING, FULL) for kind in given):
        raise InputError(
            f"{config.origin}: 'layer_types' must be a list of {layers} of {SLIDING!r} and {FULL!r}, one for each layer"
        )
    return tuple(given)


def start(model: Assembly, spec: GptOssSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, rotary tables and masks for both kinds of layers; returns what layers share.

    transformers runs eager attention where sdpa is asked (`_supports_sdpa` of its code).
    """
    if model.settings.attention == "sdpa":
        model.settings = replace(model.settings, attention="eager")
        model.notes["attention_kernel"] = "eager"
        model.notes["attention_kernel_reason"] = "sdpa has no sinks, so transformers runs gpt-oss eagerly"
    return decoder.start(model, EMBEDDING, (spec.head_dim // 2,) * 2, (None, spec.sliding_window))


def layer_form(model: Assembly, spec: GptOssSpec, index: int) -> object:
    """Eager layers of the two kinds read different masks."""
    return spec.layer_types[index] if model.settings.attention == "eager" else None


def layer(model: Assembly, spec: GptOssSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    tape = model.tape
    normed = _norm(model, entry, "input_layernorm")
    hidden, weights = _attention(model, spec, normed, shared)
    residual = pw.add(tape, entry, model.submodule("self_attn", normed, entry, hidden))
    normed = _norm(model, residual, "post_attention_layernorm")
    hidden, routing = _experts(model, spec, normed)
    exit = pw.add(tape, residual, model.submodule("mlp", normed, residual, hidden))
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(*weights, routing)
    return close("layer", tape, entry, exit)


def _norm(model: Assembly, x: Tensor, module: str) -> Tensor:
    return model.rms_norm(x, module, pw.rms_norm_wide)


def _attention(model: Assembly, spec: GptOssSpec, x: Tensor, shared: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    tape, settings = model.tape, model.settings
    kernel = kernel_of(model, spec, x, spec.sliding_window)
    assert model.layer is not None
    cos, sin, *masks = shared
    mask = int(spec.layer_types[model.layer] == SLIDING)
    q, k, v = projected(model, spec, kernel, x, spec.attention_bias)
    tape.scope = "self_attn"
    q, k = _rotated(model, q, cos, sin), _rotated(model, k, cos, sin)
    sinks = model.weight("self_attn", (spec.num_attention_heads,), "other", "sinks")
    if settings.use_cache and settings.gradient_checkpointing == "off":
        k, v = cached(model, k), cached(model, v)
    for part in model.method.parts:
        k, v = part.keys_values(model, k, v)
    weights: tuple[Tensor, ...] = ()
    if kernel.name == "eager":
        dropout = spec.attention_dropout if settings.attention_dropout is None else settings.attention_dropout
        out, scores = eager_with_sinks(tape, q, k, v, masks[mask], sinks, dropout, settings.use_cache)
        weights = (scores,)
    else:
        out, weights, _ = run_kernel(model, spec, kernel, (q, k, v), tuple(masks))
    out = tape.view("join_heads", out, (*out.shape[:2], spec.num_attention_heads * spec.head_dim))
    tape.scope = ""
    y = model.linear(out, "self_attn.o_proj", spec.hidden_size, spec.attention_bias)
    tape.hold(x, q, k, v)
    return y, weights


def _rotated(model: Assembly, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`_apply_rotary_emb`: the two halves against each other, joined."""
    tape = model.tape
    half = (*x.shape[:-1], x.shape[-1] // 2)
    left, right = pw.split(tape, x, [half, half])
    first = pw.add(tape, pw.multiply(tape, left, cos), pw.multiply(tape, right, sin), "sub")
    second = pw.add(tape, pw.multiply(tape, right, cos), pw.multiply(tape, left, sin))
    out = model.join("cat", first, second, x.shape)
    tape.hold(left, right, first, second)
    return out


def _experts(model: Assembly, spec: GptOssSpec, x: Tensor) -> tuple[Tensor, Tensor]:
    """The sparse block's output, and the routing weights, which the layer's code holds."""
    tape = model.tape
    batch, length, width = x.shape
    flat = tape.view("reshape", x, (batch * length, width))
    routed = _router(model, spec, flat)
    experts = Experts(
        "mlp.experts", spec.num_experts, spec.top_k, width, spec.intermediate_size, transposed=True, biased=True, gate="clamped"
    )
    y = run_experts(model, flat, routed, experts)
    tape.hold(flat, *routed.held, routed.experts)
    return tape.view("reshape", y, x.shape), routed.weights


def _router(model: Assembly, spec: GptOssSpec, x: Tensor) -> Routed:
    """`GptOssTopKRouter`: the best logits, then their softmax in the model's dtype."""
    tape = model.tape
    tape.scope = "mlp.router"
    weight = model.stacked_weight("mlp.router", "weight", (spec.num_experts, x.shape[-1]), kind="router")()
    logits = linear(tape, x, weight, model.weight("mlp.router", (spec.num_experts,), "bias", "bias", "router"))
    record(model, logits)
    values, chosen = rt.topk(tape, logits, spec.top_k)
    weights = pw.softmax(tape, values)
    tape.hold(values, weight, *model.wrapped)
    model.wrapped = []
    tape.scope = ""
    return Routed(weights, chosen, (logits,))


def finish(model: Assembly, spec: GptOssSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, _norm(model, entry, "model.norm"), EMBEDDING, "lm_head")
