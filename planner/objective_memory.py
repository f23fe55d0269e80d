"""What an objective adds to a step's memory: a reference model, its forward, and the generation of completions.

Mirrors the order of calls of TRL 1.16. DPOTrainer runs the reference's forward after the policy's, when all that the policy saved
is alive. GRPOTrainer generates first, for all micro-batches of an update at once, then scores what it generated, before any
activation is kept. Not counted: prompts and completions as token ids, and what a sampler sorts.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from tuneplan.planner.graph.ledger import Walk
from tuneplan.planner.graph.meter import Levels
from tuneplan.planner.graph.tensor import (
    ACTIVATIONS,
    BITS,
    CATEGORIES,
    GRADIENTS,
    KV_CACHE,
    LOGITS,
    OPTIMIZER_STATES,
    TEMPORARY,
    WEIGHTS,
    Size,
    round_block,
)
from tuneplan.planner.models.network import Network
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding, share

if TYPE_CHECKING:
    from tuneplan.planner.memory import Phase

SAMPLED_COPIES = 2
"""fp32 copies of the next token's logits while one is drawn: the scores and their softmax (`_sample` of transformers 5.23)."""


def with_objective(phases: "dict[str, Phase]", network: Network, settings: Settings, sharding: Sharding) -> "dict[str, Phase]":
    """The phases of a step with those of its objective, and with what the objective keeps in all of them.

    Args:
        phases: of the step without it, whose objective is not plain.
        network: with its inference networks.
        settings: the run.
        sharding: a reference model is split as the trained one is.
    """
    objective = settings.objective
    kept = _nothing()
    if objective.reference == "model" and network.reference is not None:
        total = sum(p.stored_bytes * p.count for p in network.reference.parameters)
        kept[WEIGHTS] = share(total, sharding.weight_ranks)
    kept[KV_CACHE] = objective.vllm_bytes
    if any(kept):
        phases = {name: _more(phase, kept) for name, phase in phases.items()}
    if network.reference is not None and objective.name == "dpo":
        forward = phases["forward"]
        start = [forward.levels[c] if c in (WEIGHTS, OPTIMIZER_STATES, KV_CACHE) else 0 for c in range(len(CATEGORIES))]
        start[ACTIVATIONS] = forward.end_bytes - sum(start)
        beside = _run(forward, start, network.reference, "reference")
        return _between(phases, "forward", "reference", beside)
    if objective.name == "grpo":
        return {"load": phases["load"], "rollout": _rollout(phases, network, settings), **_without(phases, "load")}
    return phases


def inference(network: Network) -> tuple[Levels, str]:
    """Levels at the peak of a forward without gradients, weights aside, and the op there; a layer frees its input."""
    level, best, where = _nothing(), _nothing(), ""
    for run in network.runs:
        block = run.block
        segment = Walk(block).forward(keep=False)
        for _ in range(min(run.count, 2)):
            peak = [a + b for a, b in zip(level, segment.peak, strict=True)]
            if _first(sum(peak)) > _first(sum(best)):
                best, where = peak, segment.peak_op
            level = [a + b for a, b in zip(level, segment.delta, strict=True)]
            if block.entry is not None and block.entry_held:
                level[block.entry.storage.category] = level[block.entry.storage.category] - block.entry.storage.nbytes
    return best, where


def kv_bytes(network: Network, settings: Settings, tokens: Size) -> Size:
    """Keys and values of so many tokens of each sequence that is generated, in the model's dtype."""
    spec = network.spec
    assert spec is not None
    width = 2 * spec.num_hidden_layers * spec.num_key_value_heads * spec.head_dim
    sequences = settings.objective.generated or settings.micro_batch_size
    return sequences * tokens * width * BITS[settings.autocast or settings.dtype] // 8


def _rollout(phases: "dict[str, Phase]", network: Network, settings: Settings) -> "Phase":
    """Generation and scoring, whichever needs more."""
    update = phases["optimizer_step"]
    gradients = sum(p.stored_bytes * p.count for p in network.parameters if p.trainable)
    start = _nothing()
    for category in (WEIGHTS, OPTIMIZER_STATES, KV_CACHE):
        start[category] = update.levels[category]
    beside = update.levels[GRADIENTS] - gradients
    start[GRADIENTS] = beside * (beside > 0)
    objective = settings.objective
    found = []
    if network.prompts is not None:
        spec = network.spec
        assert spec is not None
        prompt = settings.seq_len - objective.completion_length
        reading = start.copy()
        reading[KV_CACHE] = reading[KV_CACHE] + kv_bytes(network, settings, prompt)
        found.append(_run(update, reading, network.prompts, "prompts"))
        sequences = objective.generated or settings.micro_batch_size
        whole = kv_bytes(network, settings, settings.seq_len)
        writing = start.copy()
        writing[KV_CACHE] = writing[KV_CACHE] + whole
        writing[TEMPORARY] = _decoding(whole, network, settings)
        size = BITS[settings.autocast or settings.dtype] // 8
        writing[LOGITS] = round_block(sequences * spec.vocab_size * (size + 4 * SAMPLED_COPIES))
        found.append(replace(update, peak_bytes=sum(writing), end_bytes=sum(start), op="generate", levels=writing))
    if network.reference is not None and (objective.reference != "none" or objective.vllm_bytes):
        found.append(_run(update, start, network.reference, "scores"))
    if not found:
        found.append(replace(update, peak_bytes=sum(start), end_bytes=sum(start), op="vllm", levels=start))
    return max(found, key=lambda phase: _first(phase.peak_bytes))


def _decoding(whole: Size, network: Network, settings: Settings) -> Size:
    """What one layer holds for a moment while a token is written: its keys joined anew, or keys and values repeated.

    Mirrors `DynamicLayer.update` (a concatenation each for keys and values) and `repeat_kv` of transformers 5.23, which eager
    attention calls, and sdpa where it gets a mask, as it does for prompts of different lengths.
    """
    spec = network.spec
    assert spec is not None
    keys = whole // (2 * spec.num_hidden_layers)
    repeats = spec.num_attention_heads // spec.num_key_value_heads
    if settings.attention == "flash" or repeats == 1:
        return keys
    return 2 * keys * repeats


def _run(like: "Phase", start: Levels, network: Network, name: str) -> "Phase":
    """A phase that begins and ends at some levels, with a forward of a network in it."""
    peak, op = inference(network)
    levels = [a + b for a, b in zip(start, peak, strict=True)]
    return replace(like, peak_bytes=sum(levels), end_bytes=sum(start), op=f"{name}: {op}", levels=levels)


def _more(phase: "Phase", kept: Levels) -> "Phase":
    levels = [a + b for a, b in zip(phase.levels, kept, strict=True)]
    return replace(phase, peak_bytes=phase.peak_bytes + sum(kept), end_bytes=phase.end_bytes + sum(kept), levels=levels)


def _between(phases: "dict[str, Phase]", after: str, name: str, phase: "Phase") -> "dict[str, Phase]":
    found: dict[str, Phase] = {}
    for known, value in phases.items():
        found[known] = value
        if known == after:
            found[name] = phase
    return found


def _without(phases: "dict[str, Phase]", name: str) -> "dict[str, Phase]":
    return {known: phase for known, phase in phases.items() if known != name}


def _nothing() -> Levels:
    return [0] * len(CATEGORIES)


def _first(size: Size) -> int:
    return size if isinstance(size, int) else int(size.flat[0])
