"""Multi-head latent attention: queries, keys and values out of two low-rank projections, heads rotated in part.

Mirrors `DeepseekV2Attention` and `DeepseekV3Attention` of transformers 5.23 models/deepseek_v2 and deepseek_v3. Queries and keys
have `qk_nope_head_dim + qk_rope_head_dim` columns, values `v_head_dim`: FlashAttention inside sdpa takes one size alone, so the
memory-efficient kernel runs; transformers' own FlashAttention pads the values and cuts the output.
"""

from dataclasses import dataclass, replace

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.in_place import copy_into
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Tensor, round_block
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import cached, heads_first, run_kernel, split_heads
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec, masked
from tuneplan.planner.training.attention_kernel import choose


@dataclass(frozen=True, slots=True)
class Latent:
    """Sizes of the projections, by their names in config.json; `interleaved`: pairs of columns are rotated in place.

    `complex`: rotation is a product of complex numbers (DeepSeek V2).
    """

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    attention_bias: bool
    interleaved: bool
    complex: bool = False

    @property
    def qk_head_dim(self) -> int:
        """Columns of a query's or key's head."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim


def read_latent(config: ConfigReader, *, complex: bool = False) -> Latent:
    """The sizes that a config.json gives. Raises InputError where one makes no sense."""
    rank = config.optional_integer("q_lora_rank")
    if rank is None and "q_lora_rank" not in config.mapping:
        rank = 1536
    return Latent(
        rank,
        config.integer("kv_lora_rank", 512),
        config.integer("qk_nope_head_dim", 128, maximum=2**14),
        config.integer("qk_rope_head_dim", 64, maximum=2**14),
        config.integer("v_head_dim", 128, maximum=2**14),
        config.boolean("attention_bias", False),
        config.boolean("rope_interleave", True),
        complex,
    )


def latent_attention(
    model: Assembly, spec: DecoderSpec, sizes: Latent, x: Tensor, shared: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Self-attention. Shapes: x `(batch, length, hidden)` -> the same; also attention weights that the layer's code holds.

    Raises InputError for prefixes, which PEFT would put into a cache of latents that they do not fit.
    """
    if model.method.prefix_length:
        raise InputError(
            f"{spec.id}: its cache holds latents and not the keys and values of heads, so peft's prefixes do not fit; "
            "use prompt_tuning or lora"
        )
    tape, heads = model.tape, spec.num_attention_heads
    batch, length, _ = x.shape
    q_pass, q_rot = _queries(model, sizes, x, heads)
    compressed = model.linear(
        x, "self_attn.kv_a_proj_with_mqa", sizes.kv_lora_rank + sizes.qk_rope_head_dim, sizes.attention_bias
    )
    latent, k_rot = pw.split(tape, compressed, [(batch, length, w) for w in (sizes.kv_lora_rank, sizes.qk_rope_head_dim)])
    latent = model.rms_norm(latent, "self_attn.kv_a_layernorm")
    latent = tape.view("view", latent, (batch, 1, length, sizes.kv_lora_rank))
    k_rot = tape.view("view", k_rot, (batch, 1, length, sizes.qk_rope_head_dim))
    tape.scope = "self_attn"
    q_rot, k_rot = _rotated(model, sizes, (q_rot, k_rot), shared)
    if model.settings.use_cache and model.settings.gradient_checkpointing == "off":
        latent, k_rot = cached(model, latent), cached(model, k_rot)
    q = model.join("cat", q_pass, q_rot, (batch, heads, length, sizes.qk_head_dim))
    k, v = _expanded(model, sizes, latent, k_rot, heads)
    tape.scope = "self_attn"
    out, weights, held = _attended(model, spec, sizes, (q, k, v), shared[1 if sizes.complex else 2 :])
    tape.scope = ""
    y = model.linear(out, "self_attn.o_proj", spec.hidden_size, sizes.attention_bias)
    tape.hold(x, q_pass, q_rot, compressed, latent, k_rot, q, k, v, *held)
    return y, weights


def _queries(model: Assembly, sizes: Latent, x: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Columns that stay and columns that are rotated: `(batch, heads, length, columns)` each, views of one tensor."""
    if sizes.q_lora_rank is None:
        wide = model.linear(x, "self_attn.q_proj", heads * sizes.qk_head_dim)
    else:
        low = model.linear(x, "self_attn.q_a_proj", sizes.q_lora_rank, sizes.attention_bias)
        low = model.rms_norm(low, "self_attn.q_a_layernorm")
        wide = model.linear(low, "self_attn.q_b_proj", heads * sizes.qk_head_dim)
    q = heads_first(model, split_heads(model, wide, sizes.qk_head_dim), copied=True)
    still, turned = pw.split(model.tape, q, [(*q.shape[:-1], w) for w in (sizes.qk_nope_head_dim, sizes.qk_rope_head_dim)])
    return still, turned


def _rotated(model: Assembly, sizes: Latent, pair: tuple[Tensor, Tensor], shared: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    tape = model.tape
    if sizes.complex:
        return _complex(model, pair, shared[0])
    cos, sin = shared[:2]
    if not sizes.interleaved:
        return pw.rotate(tape, pair[0], cos, sin), pw.rotate(tape, pair[1], cos, sin)
    halves = [Tensor(t.storage, (*t.shape[:-1], t.shape[-1] // 2), t.dtype) for t in (cos, sin)]
    q, k = (_pairs(model, x, halves[0], halves[1]) for x in pair)
    return q, k


def _pairs(model: Assembly, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`apply_rotary_pos_emb_interleave`: even and odd columns rotated against each other, then joined."""
    tape = model.tape
    half = (*x.shape[:-1], x.shape[-1] // 2)
    even, odd = pw.narrow(tape, x, half), pw.narrow(tape, x, half)
    first = pw.add(tape, pw.multiply(tape, even, cos), pw.multiply(tape, odd, sin), "sub")
    second = pw.add(tape, pw.multiply(tape, odd, cos), pw.multiply(tape, even, sin))
    out = model.join("cat", first, second, x.shape)
    tape.hold(even, odd)
    return out


def _complex(model: Assembly, pair: tuple[Tensor, Tensor], table: Tensor) -> tuple[Tensor, Tensor]:
    """`apply_rotary_emb`: fp32 pairs seen as complex numbers, times the table."""
    tape = model.tape
    wide = [pw.cast(tape, x, "fp32") for x in pair]
    turned = []
    for x, given in zip(wide, pair, strict=True):
        product = tape.fresh(x.shape, "fp32", x.requires_grad)
        gradient = Gradient(x, round_block(x.nbytes), moved=3 * x.nbytes)
        tape.record("mul_complex", (x, table), product, saved=(table,), gradients=(gradient,))
        turned.append(pw.cast(tape, product, given.dtype))
    tape.hold(*wide)
    q, k = turned
    return q, k


def _expanded(model: Assembly, sizes: Latent, latent: Tensor, k_rot: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """`expand_kv`: keys joined in a fresh tensor from what the latents give and the rotated columns; values are a view."""
    tape = model.tape
    batch, _, length, _ = latent.shape
    wide = model.linear(latent, "self_attn.kv_b_proj", heads * (sizes.qk_nope_head_dim + sizes.v_head_dim))
    split = tape.view("view", wide, (batch, length, heads, sizes.qk_nope_head_dim + sizes.v_head_dim))
    both = heads_first(model, split, copied=True)
    k_nope, v = pw.split(tape, both, [(*both.shape[:-1], w) for w in (sizes.qk_nope_head_dim, sizes.v_head_dim)])
    spread = tape.view("expand", k_rot, (batch, heads, length, sizes.qk_rope_head_dim))
    if k_rot.requires_grad:
        tape.ops[-1].gradients = (Gradient(k_rot, round_block(k_rot.nbytes), moved=spread.nbytes),)
    shape = (batch, heads, length, sizes.qk_head_dim)
    empty = tape.record("new_empty", (), tape.fresh(shape, k_nope.dtype, False), moved=0)
    k = copy_into(tape, copy_into(tape, empty, k_nope), spread)
    tape.hold(wide, spread)
    return k, v


def _attended(
    model: Assembly, spec: DecoderSpec, sizes: Latent, rotated: tuple[Tensor, Tensor, Tensor], masks: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    settings, tape = model.settings, model.tape
    q, k, v = rotated
    given = replace(settings, padded=masked(model, None))
    kernel = choose(given, settings.autocast or q.dtype, False, sizes.qk_head_dim, sizes.v_head_dim)
    model.notes["attention_kernel"], model.notes["attention_kernel_reason"] = kernel.name, kernel.reason
    held: tuple[Tensor, ...] = (q, k, v)
    if kernel.name == "flash" and sizes.v_head_dim != sizes.qk_head_dim:
        padded = tape.fresh((*v.shape[:-1], sizes.qk_head_dim), v.dtype, v.requires_grad)
        tape.record("pad", (v,), padded, gradients=(Gradient(v, None),))
        out, weights, taken = run_kernel(model, spec, kernel, (q, k, padded), masks)
        out = pw.narrow(tape, out, (*out.shape[:-1], sizes.v_head_dim))
        out = pw.copy(tape, out, "reshape")
    else:
        out, weights, taken = run_kernel(model, spec, kernel, (q, k, v), masks)
    return tape.view("join_heads", out, (*out.shape[:2], spec.num_attention_heads * sizes.v_head_dim)), weights, (*held, *taken)
