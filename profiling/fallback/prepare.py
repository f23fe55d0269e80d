"""What a search asks of a model without a family, traced before it starts; answered from the cache without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.job import Job
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.registry import as_known
from tuneplan.planner.models.source import TracedSpec
from tuneplan.planner.models.spec import CAUSAL_LM
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling.fallback.source import TracedSource, Wish, not_traced

UNKNOWN_CONTEXT = 2**17
"""Where a config does not say how long a context may be."""
_KEYS = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "vocab_size": ("vocab_size",),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "max_sequence_length"),
    "num_attention_heads": ("num_attention_heads", "n_head", "num_heads"),
    "num_key_value_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
}
_sources: dict[tuple[str, str, str], TracedSource] = {}


def traced_spec(id: str, config: ConfigReader, task: str, reason: str) -> TracedSpec:
    """A model as it is planned from traces; the same model in one process shares them.

    Args:
        id: hub id or path.
        config: contents of its config.json.
        task: one of tasks.TASKS, or "" for what the config says.
        reason: why there is no family.
    """
    mapping: dict[str, Any] = {**config.mapping}
    text = mapping.get("text_config")
    if isinstance(text, dict):
        mapping = {**mapping, **text}
    sizes: dict[str, Any] = {name: _size(mapping, keys) for name, keys in _KEYS.items()}
    sizes["max_position_embeddings"] = sizes["max_position_embeddings"] or UNKNOWN_CONTEXT
    config = as_known(config)
    source = _sources.setdefault((id, repr(config.mapping), task), TracedSource(id, config, task))
    source.closed = False
    return TracedSpec(
        id,
        config.text("model_type"),
        tie_word_embeddings=bool(mapping.get("tie_word_embeddings", False)),
        traces=source,
        reason=reason,
        task=task or CAUSAL_LM,
        note=f"{reason}; figures are from traces of the real code",
        **sizes,
    )


def _size(mapping: Mapping[str, Any], keys: Sequence[str]) -> int:
    """The first of several keys that is a size; 0 where none is."""
    found = [mapping[key] for key in keys if isinstance(mapping.get(key), int) and mapping[key] > 0]
    return int(found[0]) if found else 0


def prepared(job: Job) -> Job:
    """The job of a traced model with every trace that its search needs; methods that cannot be traced are left out.

    Nothing is traced after that: what a search would try beside it is not looked at. Splits of the model itself are not searched.

    Raises:
        InputError: no method can be traced.
    """
    spec = job.spec
    assert isinstance(spec, TracedSpec)
    source = spec.traces
    assert isinstance(source, TracedSource)
    job.check()
    asked = [(method, settings) for method in job.methods for settings in _settings(job, method)]
    source.closed = False
    for length in sorted({settings.seq_len for _, settings in asked}, reverse=True):
        wishes: dict[Any, Wish] = {}
        for method, settings in asked:
            wish = source.wish(method, settings)
            if settings.seq_len == length and method.allows(settings) and not not_traced(method, settings):
                wishes.setdefault((method.name, wish.subject.settings), wish)
        source.trace(wishes.values())
    source.closed = True
    refusals = {method.name: _refusal(source, [s for m, s in asked if m is method], method) for method in job.methods}
    kept = tuple(method for method in job.methods if not refusals[method.name])
    if not kept:
        raise InputError(f"{spec.reason}; its real code cannot be traced either: {refusals[job.methods[0].name]}")
    notes = [spec.note, *source.notes]
    notes += [f"left out: {name} ({reason})" for name, reason in refusals.items() if reason]
    if job.layouts != "data":
        notes.append("splits of the model over GPUs (TP, PP, CP, EP) are not searched for a traced model")
    return replace(job, methods=kept, layouts="data", spec=replace(spec, note="; ".join(notes)))


def _settings(job: Job, method: Method) -> list[Settings]:
    """What a method is asked under: cards, checkpointing, and lengths of the longest and of the mean batch."""
    found: dict[Settings, None] = {}
    largest = max(job.micro_batch_sizes, default=1)
    sizes = sorted({size for t in job.targets for count in t.counts for size in job.micro_batches(count)}) or [1]
    for target in job.targets:
        for checkpointing in job.checkpointing:
            own = replace(job.settings_for(method, target), gradient_checkpointing=checkpointing, micro_batch_size=largest)
            if job.data is None:
                found[own] = None
                continue
            for size in sizes:
                of_size = replace(own, micro_batch_size=size)
                for settings in (job.longest(of_size), job.typical(of_size)):
                    found[replace(settings, micro_batch_size=largest)] = None
    return list(found)


def _refusal(source: TracedSource, asked: list[Settings], method: Method) -> str:
    """Why a method cannot be traced under any of the settings; empty where it can under some."""
    said = [source.refusal(method, settings) for settings in asked if method.allows(settings)]
    return "" if "" in said else next(iter(said), "it cannot run under these settings")
