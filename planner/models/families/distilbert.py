"""DistilBERT: BERT without segments and pooler.

Mirrors transformers 5.23 models/distilbert/modeling_distilbert.py.
"""

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.matmul import embedding
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.methods.targeted import Targeted
from tuneplan.planner.models import encoder, encoder_head, tasks
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.encoder import EncoderSpec
from tuneplan.planner.models.network import Stack

_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "classifier_dropout": 0.2,
}
_KEYS = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "classifier_dropout": "seq_classif_dropout",
}
TASKS = (tasks.SEQ_CLS, tasks.TOKEN_CLS)
ADAPTED = ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2")
"""PEFT does not run with `all-linear`; see `_refuse_nested`."""


def read(id: str, config: ConfigReader) -> EncoderSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    return EncoderSpec(**encoder.dimensions(id, config, _DEFAULTS, _KEYS))


def stacks(spec: EncoderSpec) -> tuple[Stack, ...]:
    """One."""
    return (Stack("distilbert.transformer.layer.*.", spec.num_hidden_layers, _start, _layer),)


def _start(model: Assembly, spec: EncoderSpec, _: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """Words and positions, summed, normed and dropped."""
    if model.method.virtual_tokens or model.method.prefix_length:
        raise InputError(
            f"{spec.id}: peft does not find the width of a DistilBERT, whose config calls it dim, and so cannot make virtual "
            "tokens or prefixes; use lora"
        )
    prefix = "distilbert.embeddings"
    batch, words, leaves = encoder.begin(model, f"{prefix}.word_embeddings", spec.hidden_size)
    tape, rows = model.tape, spec.max_position_embeddings
    model.common(f"{prefix}.position_ids", (1, rows), "int64", trained=False, saved=False, buffer=True)
    table = model.weight(f"{prefix}.position_embeddings", (rows, spec.hidden_size), "embedding")
    positions = embedding(tape, (1, words.shape[1]), table)
    hidden = model.layer_norm(pw.add(tape, words, positions), f"{prefix}.LayerNorm")
    hidden = pw.dropout(tape, hidden, spec.hidden_dropout)
    tape.hold(words, positions)
    return encoder.opened(model, batch, hidden, leaves)


def _layer(model: Assembly, spec: EncoderSpec, entry: Tensor, masks: tuple[Tensor, ...]) -> Block:
    """Attention and two linear layers, each with a layer norm behind its residual."""
    tape = model.tape
    kernel = encoder.bidirectional(model, spec, entry.dtype)
    names = [f"attention.{name}_lin" for name in "qkv"]
    heads = encoder.projections(model, spec, kernel, entry, names, bias=True)
    tape.scope = "attention"
    dropout = spec.attention_dropout if model.settings.attention_dropout is None else model.settings.attention_dropout
    mixed, weights, held = encoder.both_ways(model, spec, kernel, heads, masks, dropout)
    tape.scope = ""
    attended = model.linear(mixed, "attention.out_lin", spec.hidden_size, bias=True)
    tape.hold(*held, *weights)
    attended = model.submodule("self_attn", entry, entry, attended)
    hidden = model.layer_norm(pw.add(tape, attended, entry), "sa_layer_norm")
    tape.hold(attended, *weights)
    inner = model.linear(hidden, "ffn.lin1", spec.intermediate_size, bias=True)
    tape.scope = "ffn"
    inner = encoder.activate(model, inner, spec.hidden_act)
    tape.scope = ""
    out = pw.dropout(tape, model.linear(inner, "ffn.lin2", spec.hidden_size, bias=True), spec.hidden_dropout)
    out = model.submodule("mlp", hidden, hidden, out)
    exit = model.layer_norm(pw.add(tape, out, hidden), "output_layer_norm")
    tape.hold(out, hidden)
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    return close("layer", tape, entry, exit)


def _refuse_nested(model: Assembly) -> None:
    """Raise InputError for adapters of `pre_classifier`, whose name ends like that of the head, which peft copies whole."""
    for part in model.method.parts:
        if isinstance(part, Targeted) and part.targets("pre_classifier"):
            raise InputError(
                f"{part.label} with target_modules={','.join(part.target_modules)}: peft trains a copy of pre_classifier, as "
                f"its name ends in classifier, and refuses to adapt it too; use target_modules={','.join(ADAPTED)}"
            )


def finish(model: Assembly, spec: EncoderSpec, entry: Tensor) -> Block:
    """The head of the task."""
    tape = model.begin("", 1)
    if spec.task == tasks.TOKEN_CLS:
        x = pw.dropout(tape, entry, spec.hidden_dropout)
        return encoder_head.classified(model, entry, encoder_head.head(model, x, "classifier", spec.num_labels), (x,))
    first = encoder_head.first_token(model, entry)
    _refuse_nested(model)
    pooled = pw.relu(tape, encoder_head.head(model, first, "pre_classifier", spec.hidden_size))
    pooled = pw.dropout(tape, pooled, spec.classifier_dropout)
    return encoder_head.classified(model, entry, encoder_head.head(model, pooled, "classifier", spec.num_labels), (pooled,))
