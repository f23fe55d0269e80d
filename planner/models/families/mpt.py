"""MPT: positions as biases of the scores (ALiBi), no biases of weights, and always eager attention.

Mirrors transformers 5.23 models/mpt/modeling_mpt.py.
"""

from dataclasses import dataclass

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.matmul import batched
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attention_probability, heads_first, plain_mlp, split_heads, stored
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec

LAYERS = "transformer.blocks.*."
EAGER_ONLY = True
EMBEDDING = "transformer.wte"
_KEYS = {
    "hidden_size": "d_model",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
    "max_position_embeddings": "max_seq_len",
    "num_key_value_heads": "",
    "head_dim": "",
    "intermediate_size": "",
    "attention_dropout": "",
}
_DEFAULTS = {
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "max_position_embeddings": 2048,
    "vocab_size": 50368,
    "tie_word_embeddings": True,
    "hidden_act": "gelu",
}


@dataclass(frozen=True, slots=True)
class MptSpec(DecoderSpec):
    """An MPT model; `clipped`: queries, keys and values are clamped. Its one dropout is that of attention."""

    clipped: bool


def read(id: str, config: ConfigReader) -> MptSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    attention = config.section("attn_config") if config.has("attn_config") else ConfigReader({}, config.origin)
    fields = decoder.dimensions(id, config, activation_key="", defaults=_DEFAULTS, keys=_KEYS, rotary=False)
    fields["attention_dropout"] = attention.number("attn_pdrop", 0.0, maximum=decoder.MOST_DROPOUT)
    return MptSpec(**fields, sliding_window=None, clipped=bool(attention.number("clip_qkv", 0.0)))


def start(model: Assembly, spec: MptSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, the mask and the biases of positions; returns the last two, which layers share."""
    decoder.run_eagerly(model, "MPT")
    if model.method.virtual_tokens or model.method.prefix_length:
        raise InputError("peft finds no number of heads in the config of MPT, so it adds no prompts and prefixes; use lora")

    def alibi(hidden: Tensor) -> Tensor:
        shape = (spec.num_attention_heads, 1, spec.max_position_embeddings)
        return model.tape.record("alibi", (), model.tape.fresh(shape, "fp32", False))

    return decoder.start(model, EMBEDDING, (), (None,), beside=alibi, boolean_mask=True)


def layer(model: Assembly, spec: MptSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    tape = model.tape
    drop = attention_probability(model, spec)
    first = model.layer_norm(entry, "norm_1", bias=False)
    attention, weights = _attention(model, spec, first, shared, drop)
    attention = model.submodule("self_attn", first, entry, attention)
    residual = pw.add(tape, pw.dropout(tape, attention, drop), entry)
    second = model.layer_norm(residual, "norm_2", bias=False)
    hidden = model.submodule("mlp", second, residual, plain_mlp(model, spec, second, "ffn.up_proj", "ffn.down_proj", bias=False))
    dropped = pw.dropout(tape, hidden, drop)
    exit = pw.add(tape, dropped, residual)
    tape.hold(hidden)
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(attention, second, *weights)
    return close("layer", tape, entry, exit)


def _attention(
    model: Assembly, spec: MptSpec, x: Tensor, shared: tuple[Tensor, ...], drop: float
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Self-attention; also returns attention weights that the layer's code holds."""
    tape = model.tape
    model.attention_input = x
    mask, alibi = shared
    batch, length, width = x.shape
    fused = model.linear(x, "attn.Wqkv", 3 * width)
    tape.scope = "attn"
    if spec.clipped:
        fused = pw.clamp(tape, fused)
    parts = pw.split(tape, fused, [x.shape] * 3)
    q, k, v = (heads_first(model, split_heads(model, part, spec.head_dim), copied=True) for part in parts)
    k, v = stored(model, k, v)
    keys, values = k, v
    query, key = pw.copy(tape, q), (k if k.storage is not fused.storage else pw.copy(tape, k))
    scores = batched(tape, query, key, (batch, spec.num_attention_heads, length, k.shape[2]), spec.head_dim)
    scores = pw.masked_fill(tape, pw.add(tape, pw.scale(tape, scores), alibi), mask)
    weights = pw.dropout(tape, pw.cast(tape, pw.softmax(tape, scores), v.dtype), drop)
    value = v if v.storage is not fused.storage else pw.copy(tape, v)
    mixed = batched(tape, weights, value, (batch, spec.num_attention_heads, length, spec.head_dim), k.shape[2])
    joined = pw.copy(tape, mixed, "contiguous")
    joined = tape.view("join_heads", joined, (batch, length, width))
    tape.scope = ""
    y = model.linear(joined, "attn.out_proj", width)
    tape.hold(x, fused, keys, values, scores, weights, joined, alibi)
    return y, (weights,)


def finish(model: Assembly, spec: MptSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    hidden = model.layer_norm(entry, "transformer.norm_f", bias=False)
    return decoder.finish(model, spec, entry, hidden, EMBEDDING, "lm_head")
