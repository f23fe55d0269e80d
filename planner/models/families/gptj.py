"""GPT-J and CodeGen: attention and MLP beside each other on one norm, heads rotated in pairs by a table of each layer's own.

Mirrors transformers 5.23 models/gptj/modeling_gptj.py and models/codegen/modeling_codegen.py, which have no sdpa; GPT-J's own
FlashAttention is not modelled.
"""

from dataclasses import dataclass

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.matmul import batched
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Tensor, round_block, tensor_bytes
from tuneplan.planner.models import decoder, positions
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attention_probability, heads_first, plain_mlp, split_heads, stored
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec
from tuneplan.planner.models.families.gpt2 import KEYS

LAYERS = "transformer.h.*."
NO_FLASH = True
EMBEDDING = "transformer.wte"
_DEFAULTS = {
    "hidden_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "vocab_size": 50400,
    "hidden_act": "gelu_new",
}
_PARTS = 4
"""In how many groups of heads CodeGen's fused projection has queries, values and keys."""


@dataclass(frozen=True, slots=True)
class GptJSpec(DecoderSpec):
    """A GPT-J or CodeGen model.

    Attributes:
        rotary_dim: columns of each head that are rotated.
        resid_pdrop: dropout of the outputs of attention and MLP.
        embd_pdrop: dropout of the embeddings.
    """

    rotary_dim: int
    resid_pdrop: float
    embd_pdrop: float


def read(id: str, config: ConfigReader) -> GptJSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    fields = decoder.dimensions(id, config, activation_key="activation_function", defaults=_DEFAULTS, keys=KEYS)
    width = config.integer("rotary_dim", 64)
    if width > fields["head_dim"] or width % 2:
        raise InputError(f"{config.origin}: rotary_dim={width} of heads of {fields['head_dim']} cannot be rotated in pairs")
    if fields["model_type"] == "codegen" and fields["num_attention_heads"] % _PARTS:
        raise InputError(
            f"{config.origin}: n_head={fields['num_attention_heads']} is not a multiple of {_PARTS}, as CodeGen needs"
        )
    return GptJSpec(
        **fields,
        sliding_window=None,
        rotary_dim=width,
        resid_pdrop=config.number("resid_pdrop", 0.0, maximum=decoder.MOST_DROPOUT),
        embd_pdrop=config.number("embd_pdrop", 0.0, maximum=decoder.MOST_DROPOUT),
    )


def start(model: Assembly, spec: GptJSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings and the mask; returns what layers share."""
    run_written_out(model, {"gptj": "GPT-J", "codegen": "CodeGen"}[spec.model_type])
    tokens = model.settings.seq_len + model.method.virtual_tokens + model.method.prefix_length
    positions.check(spec.id, spec.max_position_embeddings, tokens)
    drops = bool(spec.embd_pdrop)

    def enter(hidden: Tensor) -> tuple[Tensor, ...]:
        return pw.dropout(model.tape, hidden, spec.embd_pdrop), hidden

    return decoder.start(model, EMBEDDING, (), (None,), enter=enter if drops else None, exit_held=not drops)


def run_written_out(model: Assembly, name: str) -> None:
    """Attention that is written out, where transformers has no sdpa. Raises InputError where flash is asked."""
    if model.settings.attention == "flash":
        raise InputError(f"attention=flash: tuneplan has only the written-out attention of {name}; use eager")
    decoder.run_eagerly(model, name)
    model.notes["attention_kernel_reason"] = f"transformers has no sdpa for {name}"


def layer(model: Assembly, spec: GptJSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    tape = model.tape
    normed = model.layer_norm(entry, "ln_1")
    attention, weights = _attention(model, spec, normed, shared[0])
    attention = model.submodule("self_attn", normed, entry, pw.dropout(tape, attention, spec.resid_pdrop))
    hidden = pw.dropout(tape, plain_mlp(model, spec, normed, "mlp.fc_in", "mlp.fc_out"), spec.resid_pdrop)
    hidden = model.submodule("mlp", normed, entry, hidden)
    exit = pw.add(tape, pw.add(tape, attention, hidden), entry)
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(normed, attention, hidden, weights)
    return close("layer", tape, entry, exit)


def _attention(model: Assembly, spec: GptJSpec, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Self-attention; also returns attention weights that the layer's code holds."""
    tape = model.tape
    model.attention_input = x
    codegen = spec.model_type == "codegen"
    q, k, v, held = (_fused if codegen else _projected)(model, spec, x)
    tape.scope = "attn"
    rows, width, length = spec.max_position_embeddings, spec.rotary_dim, x.shape[1] + 0
    model.buffer("attn.embed_positions", (rows, width), "fp32")
    if codegen:
        angles = tape.record("index", (), tape.fresh((1, length, width), "fp32", False))
    else:
        table = tape.record("repeat", (), tape.fresh((1, rows, width), "fp32", False))
        index = tape.record("repeat", (), tape.fresh((1, length, width), "int64", False))
        wide = tensor_bytes((1, length, width), "fp32")
        angles = tape.record("gather", (), tape.fresh((1, length, width), k.dtype, False), scratch=wide)
        held = (*held, table, index)
    k, *first = _rotated(model, spec, k, angles)
    q, *second = _rotated(model, spec, q, angles)
    k, q = (heads_first(model, t, copied=True) for t in (k, q))
    if model.settings.use_cache and model.settings.gradient_checkpointing == "off":
        k = pw.cast(tape, k, x.dtype)
    joined, weights, *taken = written_out(model, spec, (q, k, v), mask)
    tape.scope = ""
    y = model.linear(joined, "attn.out_proj", spec.hidden_size)
    tape.hold(x, q, *taken, angles, *held, *first, *second)
    return y, weights


def _projected(model: Assembly, spec: GptJSpec, x: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    """Queries and keys `(batch, length, heads, head_dim)`, values with heads first, and what the module's code holds besides."""
    q, k, v = (split_heads(model, model.linear(x, f"attn.{n}_proj", spec.hidden_size), spec.head_dim) for n in "qkv")
    return q, k, heads_first(model, v, copied=True), ()


def _fused(model: Assembly, spec: GptJSpec, x: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    """The same out of one projection, from whose groups of heads they are copied."""
    tape = model.tape
    batch, length, width = x.shape
    fused = model.linear(x, "attn.qkv_proj", 3 * width)
    shape = (batch, length, spec.num_attention_heads, spec.head_dim)
    q, v, k = (pw.copy(tape, part, "reshape") for part in pw.split(tape, fused, [shape] * 3))
    return q, k, heads_first(model, v, copied=True), (fused,)


def _rotated(model: Assembly, spec: GptJSpec, x: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`apply_rotary_pos_emb` of a head's first columns: the whole, and the rotated and the other columns."""
    tape = model.tape
    width = spec.rotary_dim
    first = pw.narrow(tape, x, (*x.shape[:-1], width))
    rest = pw.narrow(tape, x, (*x.shape[:-1], x.shape[-1] - width))
    shape = (1, x.shape[1], 1, width)
    sin, cos = (tape.record("repeat_interleave", (angles,), tape.fresh(shape, angles.dtype, False)) for _ in range(2))
    turned = pw.rotate(tape, first, cos, sin)
    tape.hold(sin, cos)
    joined = tape.fresh(x.shape, turned.dtype, x.requires_grad)
    back = Gradient(rest, None if rest.dtype == turned.dtype else round_block(rest.nbytes))
    tape.record("cat", (turned, rest), joined, gradients=(Gradient(turned, None), back))
    tape.hold(x)
    return joined, turned, rest


def written_out(
    model: Assembly, spec: DecoderSpec, heads: tuple[Tensor, Tensor, Tensor], mask: Tensor, scaled: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_attn` and `_merge_heads`: scores in fp32.

    Gives the output `(batch, length, hidden_size)`, attention weights, and keys and values as they are stored.

    `scaled`: scores are divided by a number; else they are masked once more, by a triangle of the layer's own (GPT-Neo).
    """
    tape = model.tape
    q, k, v = heads
    batch, count, length, size = q.shape
    projected = v
    k, v = stored(model, k, v)
    packed = v is not projected  # they lie contiguously, so that products need no copies
    query, key = pw.cast(tape, q, "fp32"), pw.cast(tape, k, "fp32")
    scores = batched(tape, pw.copy(tape, query), key if packed else pw.copy(tape, key), (batch, count, length, k.shape[2]), size)
    scores = pw.scale(tape, scores) if scaled else pw.scale(tape, scores, "where")
    soft = pw.softmax_by_default(tape, pw.add(tape, scores, mask))
    weights = pw.dropout(tape, pw.cast(tape, soft, v.dtype), attention_probability(model, spec))
    mixed = batched(tape, weights, v if packed else pw.copy(tape, v), (batch, count, length, size), k.shape[2])
    tape.hold(query, key)
    joined = tape.fresh((batch, length, count, size), mixed.dtype, mixed.requires_grad)
    copied = Gradient(mixed, round_block(mixed.nbytes), moved=2 * mixed.nbytes)
    tape.record("contiguous", (mixed,), joined, gradients=(copied,))
    return tape.view("join_heads", joined, (batch, length, count * size)), weights, k, v


def finish(model: Assembly, spec: GptJSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    hidden = model.layer_norm(entry, "transformer.ln_f")
    return decoder.finish(model, spec, entry, hidden, EMBEDDING, "lm_head", bias=True)
