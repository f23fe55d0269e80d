"""BERT, RoBERTa, XLM-RoBERTa and ELECTRA.

Mirrors transformers 5.23 models/bert/modeling_bert.py and its relatives modeling_roberta.py, modeling_xlm_roberta.py and
modeling_electra.py: learned positions, layer norm after each residual, biases everywhere. They differ by the flags of
`_VARIANTS` and by their heads.
"""

from dataclasses import dataclass

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.matmul import embedding
from tuneplan.planner.graph.tensor import Storage, Tensor
from tuneplan.planner.models import encoder, encoder_head, tasks
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.encoder import EncoderSpec
from tuneplan.planner.models.network import Stack


@dataclass(frozen=True, slots=True)
class _Variant:
    """How a relative differs from BERT.

    Attributes:
        base: name of the model within the one with a head.
        pooler: a dense layer on the first token belongs to the base model when it classifies.
        counted: positions are counted from the padding token's id on, for every sequence of its own.
        act: between the two layers of the classifier, where it has two.
        default: what the configuration class has for a key that the file leaves out.
    """

    base: str
    pooler: bool
    counted: bool
    act: str
    default: dict[str, int]


_BERT = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 30522,
    "type_vocab_size": 2,
    "max_position_embeddings": 512,
}
_ROBERTA = {**_BERT, "vocab_size": 50265}
_ELECTRA = {**_BERT, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
_VARIANTS = {
    "bert": _Variant("bert", True, False, "", _BERT),
    "roberta": _Variant("roberta", False, True, "tanh", _ROBERTA),
    "xlm-roberta": _Variant("roberta", False, True, "tanh", {**_ROBERTA, "vocab_size": 30522}),
    "electra": _Variant("electra", False, False, "gelu", _ELECTRA),
}
TASKS = (tasks.SEQ_CLS, tasks.TOKEN_CLS)


@dataclass(frozen=True, slots=True)
class BertSpec(EncoderSpec):
    """BERT and its relatives.

    Attributes:
        embedding_size: width of the embeddings, which a projection brings to `hidden_size` (ELECTRA).
        type_vocab_size: rows of the table of segments.
        positions: rows of the table of positions.
    """

    embedding_size: int
    type_vocab_size: int
    positions: int


def read(id: str, config: ConfigReader) -> BertSpec:
    """The spec of a config.json. Raises InputError where dimensions are missing, absurd or contradict each other."""
    model_type = config.text("model_type")
    variant = _VARIANTS[model_type]
    fields = encoder.dimensions(id, config, variant.default)
    rows = fields["max_position_embeddings"]
    padding = config.optional_integer("pad_token_id", minimum=0)
    skipped = (1 if padding is None else padding) + 1 if variant.counted else 0
    fields["max_position_embeddings"] = rows - skipped
    hidden = fields["hidden_size"]
    return BertSpec(
        **fields,
        embedding_size=config.integer("embedding_size", 128) if model_type == "electra" else hidden,
        type_vocab_size=config.integer("type_vocab_size", variant.default["type_vocab_size"]),
        positions=rows,
    )


def stacks(spec: BertSpec) -> tuple[Stack, ...]:
    """One."""
    base = _VARIANTS[spec.model_type].base
    return (Stack(f"{base}.encoder.layer.*.", spec.num_hidden_layers, _start, _layer),)


def _start(model: Assembly, spec: BertSpec, _: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """The embeddings, and a projection where they are narrow."""
    variant = _VARIANTS[spec.model_type]
    batch, hidden, leaves = embedded(model, spec, f"{variant.base}.embeddings", variant.counted)
    if spec.embedding_size != spec.hidden_size:
        hidden = model.linear(hidden, f"{variant.base}.embeddings_project", spec.hidden_size, bias=True)
    return encoder.opened(model, batch, hidden, leaves)


def embedded(
    model: Assembly, spec: BertSpec, prefix: str, counted: bool
) -> tuple[tuple[Storage, ...], Tensor, tuple[Storage, ...]]:
    """Words, segments and positions, summed, normed and dropped; with the batch and leaves as `encoder.begin` gives them.

    `prefix`: name of the module; `counted`: see `_Variant`.
    """
    batch, words, leaves = encoder.begin(model, f"{prefix}.word_embeddings", spec.embedding_size)
    tape = model.tape
    rows, _ = model.token_shape
    length = words.shape[1]
    count = rows if counted else 1
    numbers = []
    if counted:
        numbers.append(tape.fresh((rows, length), "int64", False))
        tape.record("position_ids", (), numbers[-1], scratch=2 * numbers[-1].storage.nbytes)
    numbers.append(tape.fresh((count, length), "int64", False))
    tape.record("token_type_ids", (), numbers[-1])
    for name in ("position_ids", "token_type_ids"):
        model.common(f"{prefix}.{name}", (1, spec.positions), "int64", trained=False, saved=False, buffer=True)
    table = model.weight(f"{prefix}.token_type_embeddings", (spec.type_vocab_size, spec.embedding_size), "embedding")
    segments = embedding(tape, (rows, length), table)
    total = pw.add(tape, words, segments)
    table = model.weight(f"{prefix}.position_embeddings", (spec.positions, spec.embedding_size), "embedding")
    positions = embedding(tape, (count, length), table)
    hidden = pw.add(tape, total, positions)
    hidden = pw.dropout(tape, model.layer_norm(hidden, f"{prefix}.LayerNorm"), spec.hidden_dropout)
    tape.hold(words, segments, positions, *numbers)
    return batch, hidden, leaves


def _layer(model: Assembly, spec: BertSpec, entry: Tensor, masks: tuple[Tensor, ...]) -> Block:
    """Attention and two linear layers, each with a layer norm behind its residual."""
    tape = model.tape
    kernel = encoder.bidirectional(model, spec, entry.dtype)
    names = [f"attention.self.{name}" for name in ("query", "key", "value")]
    heads = encoder.projections(model, spec, kernel, entry, names, bias=True)
    tape.scope = "attention.self"
    dropout = spec.attention_dropout if model.settings.attention_dropout is None else model.settings.attention_dropout
    mixed, weights, held = encoder.both_ways(model, spec, kernel, heads, masks, dropout)
    tape.hold(*held)
    tape.scope = ""
    hidden = encoder.residual(model, mixed, entry, "attention.output", "self_attn", spec.hidden_dropout)
    tape.hold(mixed, *weights)
    exit = encoder.feed_forward(model, spec, hidden)
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    return close("layer", tape, entry, exit)


def finish(model: Assembly, spec: BertSpec, entry: Tensor) -> Block:
    """The head of the task."""
    variant = _VARIANTS[spec.model_type]
    tape = model.begin("", 1)
    if spec.task == tasks.TOKEN_CLS:
        x = pw.dropout(tape, entry, spec.classifier_dropout)
        return encoder_head.classified(model, entry, encoder_head.head(model, x, "classifier", spec.num_labels), (x,))
    first = encoder_head.first_token(model, entry)
    if variant.pooler:
        pooled = pw.tanh(tape, model.linear(first, f"{variant.base}.pooler.dense", spec.hidden_size, bias=True))
        x = pw.dropout(tape, pooled, spec.classifier_dropout)
        return encoder_head.classified(model, entry, encoder_head.head(model, x, "classifier", spec.num_labels), (x, pooled))
    x = pw.dropout(tape, first, spec.classifier_dropout)
    x = encoder_head.head(model, x, "classifier.dense", spec.hidden_size)
    x = pw.tanh(tape, x) if variant.act == "tanh" else pw.activation(tape, x, variant.act)
    x = pw.dropout(tape, x, spec.classifier_dropout)
    return encoder_head.classified(model, entry, encoder_head.head(model, x, "classifier.out_proj", spec.num_labels))
