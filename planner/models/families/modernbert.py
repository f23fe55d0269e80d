"""ModernBERT: an encoder with rotary positions, gated MLPs, and sliding windows in two of three layers.

Mirrors transformers 5.23 models/modernbert/modeling_modernbert.py. Heads are rotated in fp32.
"""

from dataclasses import dataclass
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Size, Storage, Tensor, round_block, tensor_bytes
from tuneplan.planner.models import encoder, encoder_head, layer_kinds, tasks
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import heads_first
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.encoder import EncoderSpec
from tuneplan.planner.models.layer_kinds import FULL, SLIDING
from tuneplan.planner.models.network import Stack

_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "intermediate_size": 1152,
    "vocab_size": 50368,
    "max_position_embeddings": 8192,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout": 0.0,
}
_KEYS = {
    "hidden_act": "hidden_activation",
    "hidden_dropout_prob": "mlp_dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
TASKS = (tasks.SEQ_CLS, tasks.TOKEN_CLS)
POOLINGS = ("cls", "mean")


@dataclass(frozen=True, slots=True)
class ModernBertSpec(EncoderSpec):
    """ModernBERT.

    Attributes:
        layer_types: of each layer.
        window: tokens to each side that a layer with a sliding window sees.
        norm_bias: norms have one.
        attention_bias: the projections of attention have one.
        mlp_bias: those of the MLP have one.
        classifier_bias: the linear layer of the head before the last has one.
        classifier_act: its activation.
        classifier_pooling: one of POOLINGS.
        embedding_dropout: of the embeddings.
    """

    layer_types: tuple[str, ...]
    window: int
    norm_bias: bool
    attention_bias: bool
    mlp_bias: bool
    classifier_bias: bool
    classifier_act: str
    classifier_pooling: str
    embedding_dropout: float

    @property
    def longest(self) -> int | None:
        """Rotary positions have no end."""
        return None


def read(id: str, config: ConfigReader) -> ModernBertSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    fields = encoder.dimensions(id, config, _DEFAULTS, _KEYS)
    if fields["head_dim"] % 2:
        raise InputError(f"{config.origin}: heads of {fields['head_dim']} columns cannot be rotated in pairs; check the config")
    layers = fields["num_hidden_layers"]
    kinds = layer_kinds.layer_types(config, layers, 3, "") if config.has("layer_types") else None
    if kinds is None:
        every = config.integer("global_attn_every_n_layers", 3)
        kinds = tuple([SLIDING if index % every else FULL for index in range(layers)])
    pooling = config.text("classifier_pooling", "cls")
    if pooling not in POOLINGS:
        raise InputError(f"{config.origin}: classifier_pooling {pooling!r} is not known; use {' or '.join(POOLINGS)}")
    return ModernBertSpec(
        **fields,
        layer_types=kinds,
        window=config.integer("local_attention", 128, minimum=2, maximum=2**30) // 2,
        norm_bias=config.boolean("norm_bias", False),
        attention_bias=config.boolean("attention_bias", False),
        mlp_bias=config.boolean("mlp_bias", False),
        classifier_bias=config.boolean("classifier_bias", False),
        classifier_act=encoder.activation_of(config, "classifier_activation", "gelu"),
        classifier_pooling=pooling,
        embedding_dropout=encoder.dropouts(config, "embedding_dropout", 0.0),
    )


@dataclass(frozen=True, slots=True)
class _Shared:
    """What layers share, by their kind: cosines and sines, and a mask where there is one."""

    tables: dict[str, tuple[Tensor, Tensor]]
    masks: dict[str, Tensor]


def stacks(spec: ModernBertSpec) -> tuple[Stack, ...]:
    """One, whose first layer has no norm before its attention."""

    def kind(_: ModernBertSpec, index: int) -> str:
        return "" if index else "first"

    def form(_: Assembly, spec: ModernBertSpec, index: int) -> object:
        return spec.layer_types[index]

    return (Stack("model.layers.*.", spec.num_hidden_layers, _start, _layer, kind, form),)


def _start(model: Assembly, spec: ModernBertSpec, _: Tensor | None) -> tuple[Block, _Shared]:
    """Embeddings, normed and dropped; tables and masks of each kind of layer."""
    encoder.refuse_past(model)
    batch, words, leaves = encoder.begin(model, "model.embeddings.tok_embeddings", spec.hidden_size)
    tape = model.tape
    length = words.shape[1]
    numbers = tape.record("position_ids", (), tape.fresh((1, length), "int64", False))
    hidden = model.layer_norm(words, "model.embeddings.norm", bias=spec.norm_bias)
    hidden = pw.dropout(tape, hidden, spec.embedding_dropout)
    masks = {}
    for kind, window in ((FULL, None), (SLIDING, spec.window)):
        mask = _mask(model, length, window, hidden.dtype)
        if mask is not None:
            masks[kind] = mask
    kinds = tuple(dict.fromkeys(spec.layer_types))
    for kind in kinds:
        for name in ("inv_freq", "original_inv_freq"):
            model.common(
                f"model.rotary_emb.{kind}_{name}", (spec.head_dim // 2,), "fp32", trained=False, saved=False, buffer=True
            )
    shape = (1, length, spec.head_dim)
    wide = 3 * tensor_bytes(shape, "fp32")

    def table() -> Tensor:
        return tape.record("rotary_table", (), tape.fresh(shape, hidden.dtype, False), scratch=wide)

    tables = {kind: (table(), table()) for kind in kinds}
    made = [*masks.values(), *[t for pair in tables.values() for t in pair], numbers]
    carried = (*batch, *[t.storage for t in made], *leaves, *tape.held)
    return close("embeddings", tape, None, hidden, carried, batch=2, leaves=leaves * 2), _Shared(tables, masks)


def _masked(model: Assembly, length: Any, window: int | None) -> bool:
    """Whether layers get a mask: for padding, or for a window that is not longer than the sequences."""
    if window is None or model.settings.padded:
        return model.settings.padded
    return bool(length >= window) if isinstance(length, int) else bool((length >= window).any())


def _mask(model: Assembly, length: Size, window: int | None, dtype: str) -> Tensor | None:
    """`create_bidirectional_sliding_window_mask`; that of a window alone is the same for each sequence and lies there once."""
    settings = model.settings
    if settings.attention == "flash" or not _masked(model, length, window):
        return None
    rows, _ = model.token_shape
    shape = (rows, 1, length, length)
    if settings.attention == "eager":
        mask = model.tape.fresh(shape, dtype, False)
    else:
        stored = tensor_bytes((rows if settings.padded else 1, 1, length, length), "bool")
        mask = Tensor(Storage(stored, model.tape.category), shape, "bool")
    return model.tape.record("mask", (), mask, scratch=tensor_bytes(shape, "bool"))


def _layer(model: Assembly, spec: ModernBertSpec, entry: Tensor, shared: _Shared) -> Block:
    """Attention and a gated MLP, each behind a norm and before its residual."""
    tape = model.tape
    assert model.layer is not None
    kind = spec.layer_types[model.layer]
    normed = model.layer_norm(entry, "attn_norm", bias=spec.norm_bias) if model.layer else entry
    attended, weights = _attention(model, spec, normed, shared.tables[kind], shared.masks.get(kind))
    attended = model.submodule("self_attn", normed, entry, attended)
    hidden = pw.add(tape, entry, attended)
    inner = model.layer_norm(hidden, "mlp_norm", bias=spec.norm_bias)
    out = model.submodule("mlp", inner, hidden, _mlp(model, spec, inner))
    exit = pw.add(tape, hidden, out)
    tape.hold(attended, hidden, *weights)
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    return close("layer", tape, entry, exit)


def _attention(
    model: Assembly, spec: ModernBertSpec, x: Tensor, tables: tuple[Tensor, Tensor], mask: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The module's output, and attention weights that the layer's code holds."""
    tape = model.tape
    kernel = encoder.bidirectional(model, spec, x.dtype, masked=mask is not None)
    fused = model.linear(x, "attn.Wqkv", 3 * spec.num_attention_heads * spec.head_dim, spec.attention_bias)
    tape.scope = "attn"
    shape = (*x.shape[:-1], spec.num_attention_heads, spec.head_dim)
    q, k, v = (heads_first(model, part, copied=False) for part in pw.split(tape, fused, [shape] * 3))
    turned = [pw.rotate_wide(tape, t, *tables) for t in (q, k)]
    q, k = (pw.cast(tape, t, x.dtype) for t in turned)
    tape.hold(*turned)
    dropout = spec.attention_dropout if model.settings.attention_dropout is None else model.settings.attention_dropout
    masks = () if mask is None else (mask,)
    out, weights, _ = encoder.both_ways(model, spec, kernel, (q, k, v), masks, dropout, wide=True)
    tape.scope = ""
    y = model.linear(out, "attn.Wo", spec.hidden_size, spec.attention_bias)
    y = pw.dropout(tape, y, spec.attention_dropout)
    tape.hold(x, fused, q, k, v, *weights)
    return y, weights


def _mlp(model: Assembly, spec: ModernBertSpec, x: Tensor) -> Tensor:
    """`Wo(drop(act(input) * gate))` with both out of one projection."""
    tape = model.tape
    fused = model.linear(x, "mlp.Wi", 2 * spec.intermediate_size, spec.mlp_bias)
    tape.scope = "mlp"
    shape = (*x.shape[:-1], spec.intermediate_size)
    value, gate = pw.split(tape, fused, [shape, shape])
    product = pw.dropout(tape, pw.multiply(tape, encoder.activate(model, value, spec.hidden_act), gate), spec.hidden_dropout)
    tape.scope = ""
    y = model.linear(product, "mlp.Wo", spec.hidden_size, spec.mlp_bias)
    tape.hold(x, fused)
    return y


def finish(model: Assembly, spec: ModernBertSpec, entry: Tensor) -> Block:
    """Last norm, pooling and the head of the task."""
    tape = model.begin("", 1)
    last = model.layer_norm(entry, "model.final_norm", bias=spec.norm_bias)
    x = last
    if spec.task == tasks.SEQ_CLS:
        x = encoder_head.first_token(model, last) if spec.classifier_pooling == "cls" else _mean(model, last)
    dense = model.linear(x, "head.dense", spec.hidden_size, spec.classifier_bias)
    pooled = model.layer_norm(encoder.activate(model, dense, spec.classifier_act), "head.norm", bias=spec.norm_bias)
    dropped = pw.dropout(tape, pooled, spec.classifier_dropout)
    logits = encoder_head.head(model, dropped, "classifier", spec.num_labels)
    return encoder_head.classified(model, entry, logits, (x, dropped), last)


def _mean(model: Assembly, x: Tensor) -> Tensor:
    """The mean over the tokens that are no padding."""
    tape = model.tape
    rows, length, width = x.shape
    mask = tape.record("ones", (), tape.fresh((rows, length), "bool", False))
    product = tape.fresh(x.shape, x.dtype, x.requires_grad)
    tape.record("mul", (x, mask), product, saved=(mask,), gradients=(Gradient(x, round_block(x.nbytes), moved=2 * x.nbytes),))
    total = tape.fresh((rows, width), x.dtype, x.requires_grad)
    tape.record("sum", (product,), total, gradients=(Gradient(product, None, view=True),))
    count = tape.record("count", (mask,), tape.fresh((rows, 1), "int64", False))
    out = tape.fresh((rows, width), x.dtype, x.requires_grad)
    tape.record("div", (total, count), out, saved=(count,), gradients=(Gradient(total, round_block(total.nbytes)),))
    tape.hold(mask)
    return out
