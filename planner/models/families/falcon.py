"""Falcon: one head of keys and values for all of queries (7B), groups of heads (40B, 180B, 11B), or positions as biases (RW).

Mirrors transformers 5.23 models/falcon/modeling_falcon.py, whose code calls torch's sdpa itself and always with a mask. Only that
is modelled: not the attention that is written out, nor FlashAttention. Of a single sequence the one head of values counts twice
while the unfused kernel runs (0.4 % of a tiny model).
"""

from dataclasses import dataclass

from tuneplan.planner.errors import InputError, NotModelledError
from tuneplan.planner.graph import attention as kernels
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.matmul import batched
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Size, Storage, Tensor, round_block, tensor_bytes
from tuneplan.planner.methods.formats import kernel
from tuneplan.planner.methods.part import Weight
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attention_probability, heads_first, plain_mlp, stored
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec

LAYERS = "transformer.h.*."
NO_FLASH = True
EMBEDDING = "transformer.word_embeddings"
_KEYS = {
    "num_key_value_heads": "",
    "head_dim": "",
    "intermediate_size": "ffn_hidden_size",
}
_DEFAULTS = {
    "hidden_size": 4544,
    "num_hidden_layers": 32,
    "num_attention_heads": 71,
    "vocab_size": 65024,
    "tie_word_embeddings": True,
    "hidden_act": "gelu",
}
_ALWAYS_MASKED = 1
"""A window that is always shorter than the sequences: the mask is made in any case."""


@dataclass(frozen=True, slots=True)
class FalconSpec(DecoderSpec):
    """A Falcon model. `num_key_value_heads` is what attention sees: those of groups are repeated before it.

    Attributes:
        groups: heads of keys and values of the fused projection in the new architecture, 0 in the old one.
        norms: layer norms of the input where attention and MLP are beside each other.
        parallel: attention and MLP are beside each other.
        alibi: positions are biases of the scores, and heads are not rotated.
        linear_bias: biases of all projections.
        hidden_dropout: dropout of what a layer adds.
    """

    groups: int
    norms: int
    parallel: bool
    alibi: bool
    linear_bias: bool
    hidden_dropout: float


def read(id: str, config: ConfigReader) -> FalconSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    new, alibi = config.boolean("new_decoder_architecture", False), config.boolean("alibi", False)
    single = not new and config.boolean("multi_query", True)
    parallel = config.boolean("parallel_attn", True)
    keys = {**_KEYS, "hidden_size": "n_embed"} if config.has("n_embed") else _KEYS
    defaults = {**_DEFAULTS, "num_key_value_heads": 1} if single else _DEFAULTS
    fields = decoder.dimensions(id, config, activation_key="activation", defaults=defaults, keys=keys, rotary=not alibi)
    heads = fields["num_attention_heads"]
    groups = config.integer("num_kv_heads", heads, maximum=heads)
    if new and heads % groups:
        raise InputError(
            f"{config.origin}: num_attention_heads={heads} is not a multiple of num_kv_heads={groups}; check the config"
        )
    if not new and not single and groups != heads:
        raise InputError(f"{config.origin}: num_kv_heads={groups} is not num_attention_heads={heads}, which Falcon cannot run")
    norms = config.integer("num_ln_in_parallel_attn", 2 if new else 1, maximum=2)
    if parallel and norms == 2 and not new:
        raise InputError(f"{config.origin}: num_ln_in_parallel_attn=2 needs new_decoder_architecture, or Falcon cannot run")
    if new and not parallel:
        raise NotModelledError(f"{config.origin}: parallel_attn=false with new_decoder_architecture is not planned by tuneplan")
    return FalconSpec(
        **fields,
        sliding_window=None,
        groups=groups if new else 0,
        norms=norms,
        parallel=parallel,
        alibi=alibi,
        linear_bias=config.boolean("bias", False),
        hidden_dropout=config.number("hidden_dropout", 0.0, maximum=decoder.MOST_DROPOUT),
    )


def start(model: Assembly, spec: FalconSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, rotary tables, the mask and biases of positions; returns what layers share."""
    if model.settings.attention != "sdpa":
        raise InputError(f"attention={model.settings.attention}: tuneplan has only the sdpa of Falcon; use sdpa, or plan trace")
    if spec.num_key_value_heads == 1 != spec.num_attention_heads and model.method.prefix_length:
        raise InputError(
            "peft's prefixes have as many heads as queries, and this Falcon one of keys and values; use prompt_tuning or lora"
        )
    if _stays_dense(model):
        model.notes["assumed"] = (
            "bitsandbytes quantizes nothing of Falcon: its linear layers are of a class of their own (FalconLinear), which "
            "transformers 5.23 passes over; the base stays dense, in fp32 once it is prepared for training; lora takes less"
        )
    plain = spec.num_key_value_heads == spec.num_attention_heads
    model.notes["attention_kernel"] = "efficient" if plain else "math"
    model.notes["attention_kernel_reason"] = (
        "Falcon always makes a mask"
        if plain
        else "torch's fused kernels do not take one head of keys and values for many of queries"
    )

    widths = (spec.head_dim,) * 2
    if not spec.alibi:
        return decoder.start(model, EMBEDDING, widths, (_ALWAYS_MASKED,))
    biases: list[Tensor] = []

    def mask(hidden: Tensor) -> Tensor:
        tape = model.tape
        batch, length = hidden.shape[:2]
        keys = length + model.method.prefix_length
        ones = tape.record("ones", (), tape.fresh((batch, keys), "int64", False))
        biases.append(tape.record("alibi", (), tape.fresh((batch * spec.num_attention_heads, 1, keys), hidden.dtype, False)))
        tape.held += [ones.storage, biases[0].storage]
        out = tape.fresh((batch, spec.num_attention_heads, length, keys), hidden.dtype, False)
        plain = tensor_bytes((batch, 1, length, keys), "bool") + tensor_bytes((batch, 1, length, keys), hidden.dtype)
        return tape.record("biased_mask", (biases[0],), out, scratch=plain)

    block, shared = decoder.start(model, EMBEDDING, widths, (), beside=mask)
    return block, (*shared, *biases)


def _stays_dense(model: Assembly) -> bool:
    """Whether the base is one that bitsandbytes quantizes, by `type(module) is nn.Linear` (`replace_with_bnb_linear`)."""
    return kernel(model.method.storage(Weight("", "linear", "dense", model.layer), model.settings.dtype)) in ("4bit", "8bit")


def layer(model: Assembly, spec: FalconSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    tape = model.tape
    two = spec.parallel and spec.norms == 2
    first = model.layer_norm(entry, "ln_attn" if two else "input_layernorm")
    second = model.layer_norm(entry, "ln_mlp") if two else first
    attention = model.submodule("self_attn", first, entry, _attention(model, spec, first, shared))
    residual = entry
    if not spec.parallel:
        residual = pw.add(tape, entry, pw.dropout(tape, attention, attention_probability(model, spec)))
        second = model.layer_norm(residual, "post_attention_layernorm")
    hidden = plain_mlp(
        model, spec, second, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", bias=spec.linear_bias, apart=True, kept=_stays_dense(model)
    )
    hidden = model.submodule("mlp", second, residual, hidden)
    if spec.parallel:
        hidden = pw.add_in_place(tape, hidden, attention)
    exit = pw.add(tape, residual, pw.dropout(tape, hidden, spec.hidden_dropout))
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(first, second, attention, hidden)
    return close("layer", tape, entry, exit)


def _attention(model: Assembly, spec: FalconSpec, x: Tensor, shared: tuple[Tensor, ...]) -> Tensor:
    """Self-attention."""
    tape = model.tape
    model.attention_input = x
    cos, sin, mask, *biases = shared
    heads, size = spec.num_attention_heads, spec.head_dim
    columns = heads + 2 * (spec.groups or spec.num_key_value_heads)
    fused = model.linear(
        x, "self_attention.query_key_value", columns * size, spec.linear_bias, apart=True, kept=_stays_dense(model)
    )
    tape.scope = "self_attention"
    q, k, v = (heads_first(model, t, copied=False) for t in _split(model, spec, fused))
    if not spec.alibi:
        q, k = pw.rotate(tape, q, cos, sin), pw.rotate(tape, k, cos, sin)
    k, v = stored(model, k, v)
    if spec.alibi:
        out = kernels.efficient_biased(tape, q, k, v, mask, causal=False, contiguous=True)
    elif k.shape[1] == heads:
        out = kernels.efficient(tape, q, k, v, mask)
    else:
        out = _math(model, q, k, v, mask)
    joined = tape.view("join_heads", out, (*out.shape[:2], heads * size))
    tape.scope = ""
    y = model.linear(joined, "self_attention.dense", spec.hidden_size, spec.linear_bias, apart=True, kept=_stays_dense(model))
    tape.hold(x, fused, q, k, v, cos, sin, *biases)
    return y


def _split(model: Assembly, spec: FalconSpec, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`FalconAttention._split_heads`: queries, keys and values `(batch, length, heads, head_dim)`."""
    tape = model.tape
    batch, length = fused.shape[:2]
    heads, size = spec.num_attention_heads, spec.head_dim
    shape = (batch, length, heads, size)
    if not spec.groups:
        q = pw.narrow(tape, fused, shape)
        if spec.num_key_value_heads == heads:
            return q, pw.narrow(tape, fused, shape), pw.narrow(tape, fused, shape)
        single = (batch, length, 1, size)
        return q, _picked(model, fused, single), _picked(model, fused, single)
    few = (batch, length, spec.groups, size)
    q = pw.narrow(tape, fused, shape)
    key, value = _picked(model, fused, few), _picked(model, fused, few)
    if spec.groups > 1:
        q = pw.copy(tape, q, "flatten")
    k, v = (pw.repeated(tape, t, shape) if spec.groups != heads else t for t in (key, value))
    tape.hold(key, value)
    return q, k, v


def _picked(model: Assembly, fused: Tensor, shape: tuple[Size, ...]) -> Tensor:
    """Columns that a list picks: a copy, whose gradient is put into zeros of the full size (`index_backward`)."""
    out = model.tape.fresh(shape, fused.dtype, fused.requires_grad)
    return model.tape.record("index", (fused,), out, gradients=(Gradient(fused, round_block(fused.nbytes), moved=fused.nbytes),))


def _math(model: Assembly, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """`_scaled_dot_product_attention_math` with a mask; products copy the one head of keys and values for each of queries."""
    tape = model.tape
    q, k, v = kernels.lowered(tape, q, k, v)
    autocast, tape.autocast = tape.autocast, ""  # the kernel's own products are not cast
    batch, heads, length, size = q.shape
    keys = k.shape[2]
    bias = tape.fresh(mask.shape, q.dtype, False)
    tape.record("mask_to_bias", (mask,), bias, scratch=round_block(mask.nbytes))
    wide = [pw.cast(tape, t, "fp32") for t in (q, k, v)]
    query, key = pw.scale(tape, wide[0]), pw.scale(tape, wide[1])
    alone = isinstance(batch, int) and batch == 1  # whose heads lie so that products need no copy
    scores = batched(
        tape, query if alone else pw.copy(tape, query), _spread(model, key, heads), (batch, heads, length, keys), size
    )
    weights = pw.softmax(tape, pw.add(tape, scores, bias))
    unused = tape.record("to", (weights,), tape.fresh(weights.shape, q.dtype, False))  # the second result, which nobody takes
    mixed = batched(tape, weights, _spread(model, wide[2], heads), (batch, heads, length, size), keys)
    out = pw.cast(tape, mixed, q.dtype)
    tape.autocast = autocast
    tape.hold(*wide, query, weights, bias, unused)
    joined = tape.fresh((batch, length, heads, size), q.dtype, out.requires_grad)
    return tape.record("reshape", (out,), joined, gradients=(Gradient(out, None),))


def _spread(model: Assembly, x: Tensor, heads: int) -> Tensor:
    """One head for all: a copy, but for a single sequence, of which it is a view.

    Among several configurations a single sequence has a copy of one head beside it.
    """
    batch, _, length, size = x.shape
    if isinstance(batch, int) and batch == 1:
        out = model.tape.view("expand", x, (batch, heads, length, size))
        if x.requires_grad:
            model.tape.ops[-1].gradients = (Gradient(x, round_block(x.nbytes), moved=out.nbytes + x.nbytes),)
        return out
    stored = Storage(round_block(x.nbytes * (1 + (heads - 1) * (batch > 1))), model.tape.category)
    out = Tensor(stored, (batch, heads, length, size), x.dtype, x.requires_grad)
    gradient = Gradient(x, round_block(x.nbytes), moved=out.nbytes + x.nbytes)
    return model.tape.record("expand", (x,), out, gradients=(gradient,))


def finish(model: Assembly, spec: FalconSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, model.layer_norm(entry, "transformer.ln_f"), EMBEDDING, "lm_head")
