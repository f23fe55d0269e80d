"""Llama 4 (text): experts that all run on every token, layers without positions, attention in chunks.

Mirrors transformers 5.23 models/llama4/modeling_llama4.py (`Llama4ForCausalLM`). `Llama4TextMoe` repeats the tokens for every
expert and multiplies them by scores that are zero where an expert was not chosen, so memory and time are those of all experts,
whatever `num_experts_per_tok` says. A quantized base has a list of MLPs in place of the stacked experts
(`SequentialLlama4TextExperts` of quantizers/base.py).
"""

from dataclasses import dataclass

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph import routing as rt
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.in_place import copy_into
from tuneplan.planner.graph.matmul import batched, linear
from tuneplan.planner.graph.tape import Gradient, Op
from tuneplan.planner.graph.tensor import Tensor, round_block
from tuneplan.planner.methods.formats import kernel
from tuneplan.planner.methods.part import Weight
from tuneplan.planner.methods.targeted import Targeted
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attend, fuses_values, gated_mlp, heads_first, kernel_of, split_heads
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec
from tuneplan.planner.models.router_logits import KEPT, asked, record

LAYERS = "model.layers.*."
EMBEDDING = "model.embed_tokens"
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROUTER = "feed_forward.router"
NO_FLASH = True
MOE, DENSE = "moe", "dense"
CHUNKED, FULL = "chunked_attention", "full_attention"
_DEFAULTS = {
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 202048,
    "max_position_embeddings": 131072,
}


@dataclass(frozen=True, slots=True)
class Llama4Spec(DecoderSpec):
    """A Llama 4 model; `intermediate_size` is the width inside an expert, `sliding_window` the chunk of attention.

    Attributes:
        dense_size: width inside the MLP of layers without experts.
        local_experts: experts of a layer, all of which run.
        top_k: experts of a token whose scores are not zero.
        moe_layers: whether each layer has experts.
        rotated_layers: whether queries and keys of each layer are rotated.
        layer_types: of each layer, "chunked_attention" or "full_attention".
        head_norm: rotated queries and keys are normed, without a weight.
        tempered: queries of layers without positions are scaled by their position.
        attention_bias: biases on q, k, v and o.
    """

    dense_size: int
    local_experts: int
    top_k: int
    moe_layers: tuple[bool, ...]
    rotated_layers: tuple[bool, ...]
    layer_types: tuple[str, ...]
    head_norm: bool
    tempered: bool
    attention_bias: bool

    def chunk(self, layer: int) -> int | None:
        """The chunk of a layer's attention, None for full attention."""
        return self.sliding_window if self.layer_types[layer] == CHUNKED else None


def read(id: str, config: ConfigReader) -> Llama4Spec:
    """The spec of a config.json. Raises InputError where dimensions are missing, absurd or contradict each other."""
    fields = decoder.dimensions(id, config, defaults=_DEFAULTS)
    layers = fields["num_hidden_layers"]
    count, top_k = config.integer("num_local_experts", 16, maximum=2**16), config.integer("num_experts_per_tok", 1, maximum=2**10)
    if top_k > count:
        raise InputError(f"{config.origin}: num_experts_per_tok={top_k}, but there are {count} experts; check the config")
    rotated = _rotated(config, layers)
    chunk = config.optional_integer("attention_chunk_size", maximum=2**30)
    return Llama4Spec(
        **fields,
        sliding_window=8192 if "attention_chunk_size" not in config.mapping else chunk,
        dense_size=config.integer("intermediate_size_mlp", 16384),
        local_experts=count,
        top_k=top_k,
        moe_layers=_moe_layers(config, layers),
        rotated_layers=rotated,
        layer_types=_layer_types(config, rotated),
        head_norm=config.boolean("use_qk_norm", True),
        tempered=config.boolean("attn_temperature_tuning", True),
        attention_bias=config.boolean("attention_bias", False),
        router_logits=asked(config, KEPT),
    )


def _rotated(config: ConfigReader, layers: int) -> tuple[bool, ...]:
    """Every fourth layer has no positions, or those with a 0 in `no_rope_layers`."""
    given = config.mapping.get("no_rope_layers")
    if given is None or given == []:
        step = config.integer("no_rope_layer_interval", 4)
        return tuple([(index + 1) % step != 0 for index in range(layers)])
    if not isinstance(given, list) or len(given) < layers or any(flag not in (0, 1) for flag in given):
        raise InputError(f"{config.origin}: 'no_rope_layers' must be a list of {layers} of 0 and 1, one for each layer")
    return tuple([bool(flag) for flag in given[:layers]])


def _layer_types(config: ConfigReader, rotated: tuple[bool, ...]) -> tuple[str, ...]:
    given = config.mapping.get("layer_types")
    if given is None:
        return tuple([CHUNKED if turned else FULL for turned in rotated])
    if not isinstance(given, list) or len(given) != len(rotated) or any(kind not in (CHUNKED, FULL) for kind in given):
        raise InputError(
            f"{config.origin}: 'layer_types' must be a list of {len(rotated)} of {CHUNKED!r} and {FULL!r}, one for each layer"
        )
    return tuple(given)


def _moe_layers(config: ConfigReader, layers: int) -> tuple[bool, ...]:
    given = config.mapping.get("moe_layers")
    if given is None:
        step = config.integer("interleave_moe_layer_step", 1)
        return tuple([(index + 1) % step == 0 for index in range(layers)])
    if not isinstance(given, list) or not all(isinstance(index, int) for index in given):
        raise InputError(f"{config.origin}: 'moe_layers' must be a list of layers' indices. Correct the file.")
    return tuple([index in given for index in range(layers)])


def start(model: Assembly, spec: Llama4Spec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, the table of complex numbers and masks; returns what layers share."""
    if model.settings.attention == "flash":
        raise InputError(f"{spec.id}: transformers has no FlashAttention for Llama 4; use --attention sdpa or eager")
    kinds = [kind for kind in (FULL, CHUNKED) if kind in spec.layer_types]
    windows = tuple([None if kind == FULL else spec.sliding_window for kind in kinds])
    return decoder.start(model, EMBEDDING, (spec.head_dim,), windows, wide_tables=True, chunked=True)


def layer_kind(spec: Llama4Spec, index: int) -> str:
    """Whether the layer has experts or a plain MLP."""
    return MOE if spec.moe_layers[index] else DENSE


def layer_form(model: Assembly, spec: Llama4Spec, index: int) -> object:
    """Layers differ in their mask and in whether they are rotated."""
    return spec.rotated_layers[index], decoder.layer_mask(model, spec.layer_types[index], spec.chunk(index))


def layer(model: Assembly, spec: Llama4Spec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    assert model.layer is not None
    tape = model.tape
    normed = model.rms_norm(entry, "input_layernorm")
    hidden, weights = _attention(model, spec, normed, shared)
    residual = pw.add(tape, entry, model.submodule("self_attn", normed, entry, hidden))
    tape.hold(normed)
    normed = model.rms_norm(residual, "post_attention_layernorm")
    if spec.moe_layers[model.layer]:
        y, held = _experts(model, spec, normed)
    else:
        y, held = gated_mlp(model, spec, normed, module="feed_forward", width=spec.dense_size), ()
    exit = pw.add(tape, residual, model.submodule("mlp", normed, residual, y))
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(hidden, *weights, *held, shared[0])  # every layer is given the table
    return close("layer", tape, entry, exit)


def _attention(model: Assembly, spec: Llama4Spec, x: Tensor, shared: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Self-attention; also returns attention weights that the layer's code holds (eager)."""
    assert model.layer is not None
    tape, window = model.tape, spec.chunk(model.layer)
    table, masks = shared[0], shared[1:]
    if len(masks) > 1 or (masks and window is None and len(set(spec.layer_types)) > 1):
        masks = masks[:-1] if window is None else masks[-1:]
    chosen = kernel_of(model, spec, x, window)
    sizes = {"q": spec.num_attention_heads, "k": spec.num_key_value_heads, "v": spec.num_key_value_heads}
    q, k, v = (
        split_heads(model, model.linear(x, f"self_attn.{n}_proj", count * spec.head_dim, spec.attention_bias), spec.head_dim)
        for n, count in sizes.items()
    )
    copied = not fuses_values(spec, chosen)
    v = heads_first(model, v, copied)
    tape.scope = "self_attn"
    if spec.rotated_layers[model.layer]:
        q, k = _rotate(model, q, k, table)
        if spec.head_norm:
            q, k = (pw.rms_normal(tape, t) for t in (q, k))
    elif spec.tempered:
        scales = tape.record("attn_scales", (), tape.fresh((1, q.shape[1], 1, 1), "fp32", False))
        given = q
        q = pw.cast(tape, pw.multiply(tape, q, scales), given.dtype)
        tape.hold(given, scales)
    q = heads_first(model, q, chosen.name not in ("flash", "efficient"))
    k = heads_first(model, k, copied)
    out, weights, held = attend(model, spec, chosen, (q, k, v), masks, wide=False)
    tape.scope = ""
    y = model.linear(out, "self_attn.o_proj", spec.hidden_size, spec.attention_bias)
    tape.hold(x, *held)
    return y, weights


def _rotate(model: Assembly, q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """`apply_rotary_emb`: fp32 pairs seen as complex numbers, times the table; both products are there before either is cast."""
    tape = model.tape
    wide = [pw.cast(tape, t, "fp32") for t in (q, k)]
    turned = []
    for x in wide:
        product = tape.fresh(x.shape, "fp32", x.requires_grad)
        gradient = Gradient(x, round_block(x.nbytes), moved=3 * x.nbytes)
        turned.append(tape.record("mul_complex", (x, table), product, saved=(table,), gradients=(gradient,)))
    first, second = (pw.cast(tape, t, given.dtype) for t, given in zip(turned, (q, k), strict=True))
    tape.hold(q, k, *wide, *turned)
    return first, second


def _experts(model: Assembly, spec: Llama4Spec, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`Llama4TextMoe`: all experts on all tokens, weighted, and a shared one; also what the layer's code holds of it."""
    tape, count = model.tape, spec.local_experts
    batch, length, width = x.shape
    flat = tape.view("reshape", x, (batch * length, width))
    scores, logits, held = _router(model, spec, flat)
    rows = count * flat.shape[0]
    repeated = pw.repeated(tape, flat, (rows, width))
    spread = pw.copy(tape, tape.view("transpose", scores, (count, flat.shape[0])), "reshape")
    weighted = pw.multiply(tape, repeated, tape.view("view", spread, (rows, 1)))
    tape.hold(repeated)
    y = _listed(model, spec, weighted) if _as_list(model) else _stacked(model, spec, weighted)
    out = gated_mlp(model, spec, flat, module="feed_forward.shared_expert")
    total = rt.summed(tape, y, (flat.shape[0], width), copied=not _as_list(model))
    out = pw.add_in_place(tape, out, total)
    tape.hold(flat, scores, logits, weighted, y, *held)
    return tape.view("view", out, x.shape), (logits,)


def _router(model: Assembly, spec: Llama4Spec, x: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Scores `(T, E)`, zero where an expert was not chosen; the logits; what the block's code holds."""
    for part in model.method.parts:
        if isinstance(part, Targeted) and part.targets(model.path(ROUTER), model.layer):
            raise InputError(
                f"{part.label} on all linear modules of {spec.id} fails: peft wraps {ROUTER} as one, and it gives two tensors; "
                f"name the modules, such as target_modules={','.join(ADAPTED)}"
            )
    tape = model.tape
    tape.scope = ROUTER
    logits = linear(tape, x, model.weight(ROUTER, (spec.local_experts, x.shape[-1]), "router"))
    record(model, logits)
    values, chosen = rt.topk(tape, logits, spec.top_k)
    low = tape.record("full_like", (), tape.fresh(logits.shape, logits.dtype, False))
    kept = Tensor(low.storage, low.shape, low.dtype, values.requires_grad)
    gradients = (Gradient(values, round_block(values.nbytes)),) if values.requires_grad else ()
    saved = (chosen.storage,) if values.requires_grad else ()
    reads = (low.storage, values.storage, chosen.storage)
    tape.ops.append(Op(f"{tape.scope}.scatter_", reads, kept, saved=saved, saves=bool(saved), gradients=gradients))
    wide = pw.sigmoid(tape, pw.cast(tape, kept, "fp32"))
    scores = pw.cast(tape, wide, logits.dtype)
    tape.hold(kept, values, chosen)
    tape.scope = ""
    return scores, logits, ()


def _stacked(model: Assembly, spec: Llama4Spec, x: Tensor) -> Tensor:
    """`Llama4TextExperts`: two batched products over all experts. Shapes: x `(E * T, H)` -> `(E, T, H)`."""
    tape, count, inside = model.tape, spec.local_experts, spec.intermediate_size
    rows, width = x.shape
    tokens = rows // count
    up = model.stacked_weight("feed_forward.experts", "gate_up_proj", (count, width, 2 * inside), transposed=True)
    down = model.stacked_weight("feed_forward.experts", "down_proj", (count, inside, width), transposed=True)
    tape.scope = "feed_forward.experts"
    seen = tape.view("view", x, (count, tokens, width))
    both = batched(tape, seen, up(), (count, tokens, 2 * inside), width)
    gate, wide = pw.split(tape, both, [(count, tokens, inside)] * 2)
    product = pw.multiply(tape, wide, pw.activation(tape, gate, spec.hidden_act))
    y = batched(tape, product, down(), (count, tokens, width), inside)
    tape.hold(seen, both, gate, wide, *model.wrapped)
    model.wrapped = []
    tape.scope = ""
    return y


def _as_list(model: Assembly) -> bool:
    """Whether the base is loaded by bitsandbytes, so that experts are modules of their own, which are quantized."""
    stored = model.method.storage(Weight("", "linear", "feed_forward.experts.0.up_proj", model.layer), model.settings.dtype)
    return kernel(stored) in ("4bit", "8bit")


def _listed(model: Assembly, spec: Llama4Spec, x: Tensor) -> Tensor:
    """`SequentialLlama4TextExperts`: one MLP after the other, each into its rows. Shapes: x `(E * T, H)` -> `(E, T, H)`."""
    tape, count = model.tape, spec.local_experts
    rows, width = x.shape
    tokens = rows // count
    tape.scope = "feed_forward.experts"
    seen = tape.view("reshape", x, (count, tokens, width))
    out = tape.record("zeros_like", (), tape.fresh(seen.shape, x.dtype, False))
    for index in range(count):
        own = pw.narrow(tape, seen, (tokens, width))
        y = gated_mlp(model, spec, own, module=f"feed_forward.experts.{index}")
        tape.scope = "feed_forward.experts"
        out = copy_into(tape, out, y)
    tape.scope = ""
    return out


def finish(model: Assembly, spec: Llama4Spec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, model.rms_norm(entry, "model.norm"), EMBEDDING, "lm_head")
