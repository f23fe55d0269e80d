"""ALBERT: layers that share their weights, under narrow embeddings.

Mirrors transformers 5.23 models/albert/modeling_albert.py, which has no gradient checkpointing.
"""

from dataclasses import dataclass

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import encoder, encoder_head, tasks
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.families import bert
from tuneplan.planner.models.families.bert import BertSpec
from tuneplan.planner.models.network import Stack

_DEFAULTS = {
    "hidden_size": 4096,
    "num_hidden_layers": 12,
    "num_attention_heads": 64,
    "intermediate_size": 16384,
    "vocab_size": 30000,
    "max_position_embeddings": 512,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout": 0.1,
}
TASKS = (tasks.SEQ_CLS, tasks.TOKEN_CLS)
NO_CHECKPOINTING = True


@dataclass(frozen=True, slots=True)
class AlbertSpec(BertSpec):
    """ALBERT.

    Attributes:
        num_hidden_groups: sets of weights; layer i uses that of its share of the depth.
        inner_group_num: layers of attention and MLP in a set, one after the other.
    """

    num_hidden_groups: int
    inner_group_num: int


def read(id: str, config: ConfigReader) -> AlbertSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    fields = encoder.dimensions(id, config, _DEFAULTS, {"classifier_dropout": "classifier_dropout_prob"})
    layers, groups = fields["num_hidden_layers"], config.integer("num_hidden_groups", 1, maximum=2**12)
    if groups > layers:
        raise InputError(
            f"{config.origin}: num_hidden_groups={groups} are more sets of weights than the num_hidden_layers={layers} that use "
            "them; check the config"
        )
    return AlbertSpec(
        **fields,
        embedding_size=config.integer("embedding_size", 128),
        type_vocab_size=config.integer("type_vocab_size", 2),
        positions=fields["max_position_embeddings"],
        num_hidden_groups=groups,
        inner_group_num=config.integer("inner_group_num", 1, maximum=2**8),
    )


def stacks(spec: AlbertSpec) -> tuple[Stack, ...]:
    """One, whose layers of a group share their weights."""

    def group(_: AlbertSpec, index: int) -> str:
        return str(int(index / (spec.num_hidden_layers / spec.num_hidden_groups)))

    return (Stack("albert.encoder.albert_layer_groups.*.", spec.num_hidden_layers, _start, _layer, group, shared=True),)


def _start(model: Assembly, spec: AlbertSpec, _: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """The embeddings and their projection, which every ALBERT has."""
    encoder.refuse_past(model)
    batch, words, leaves = bert.embedded(model, spec, "albert.embeddings", counted=False)
    hidden = model.linear(words, "albert.encoder.embedding_hidden_mapping_in", spec.hidden_size, bias=True)
    model.tape.held.append(words.storage)
    block, masks = encoder.opened(model, batch, hidden, leaves)
    block.exit_held = False
    return block, masks


def _layer(model: Assembly, spec: AlbertSpec, entry: Tensor, masks: tuple[Tensor, ...]) -> Block:
    """The layers of a group."""
    exit = entry
    for number in range(spec.inner_group_num):
        exit = _inner(model, spec, exit, masks, f"albert_layers.{number}")
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    return close("layer", model.tape, entry, exit)


def _inner(model: Assembly, spec: AlbertSpec, x: Tensor, masks: tuple[Tensor, ...], module: str) -> Tensor:
    """Attention and two linear layers, each with a layer norm behind its residual."""
    tape = model.tape
    kernel = encoder.bidirectional(model, spec, x.dtype)
    names = [f"{module}.attention.{name}" for name in ("query", "key", "value")]
    heads = encoder.projections(model, spec, kernel, x, names, bias=True)
    tape.scope = f"{module}.attention"
    dropout = spec.attention_dropout if model.settings.attention_dropout is None else model.settings.attention_dropout
    mixed, weights, held = encoder.both_ways(model, spec, kernel, heads, masks, dropout)
    tape.scope = ""
    dense = model.linear(mixed, f"{module}.attention.dense", spec.hidden_size, bias=True)
    attended = pw.dropout(tape, dense, spec.hidden_dropout)
    attended = model.submodule("self_attn", x, x, attended)
    hidden = model.layer_norm(pw.add(tape, x, attended), f"{module}.attention.LayerNorm")
    tape.hold(attended, *held, *weights)
    inner = model.linear(hidden, f"{module}.ffn", spec.intermediate_size, bias=True)
    tape.scope = module
    inner = encoder.activate(model, inner, spec.hidden_act)
    tape.scope = ""
    out = model.linear(inner, f"{module}.ffn_output", spec.hidden_size, bias=True)
    out = model.submodule("mlp", hidden, hidden, out)
    exit = model.layer_norm(pw.add(tape, out, hidden), f"{module}.full_layer_layer_norm")
    tape.hold(x, out, hidden, *weights)
    return exit


def finish(model: Assembly, spec: AlbertSpec, entry: Tensor) -> Block:
    """The head of the task."""
    tape = model.begin("", 1)
    if spec.task == tasks.TOKEN_CLS:
        x = pw.dropout(tape, entry, spec.classifier_dropout)
        return encoder_head.classified(model, entry, encoder_head.head(model, x, "classifier", spec.num_labels), (x,))
    pooled = pw.tanh(tape, model.linear(encoder_head.first_token(model, entry), "albert.pooler", spec.hidden_size, bias=True))
    x = pw.dropout(tape, pooled, spec.classifier_dropout)
    return encoder_head.classified(model, entry, encoder_head.head(model, x, "classifier", spec.num_labels), (x, pooled))
