"""The smallest change that would make a configuration fit, found by trying."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph.tensor import GRADIENTS, OPTIMIZER_STATES, WEIGHTS
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.methods.lora import Lora
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models.registry import has_flash, suited
from tuneplan.planner.models.spec import CAUSAL_LM
from tuneplan.planner.switches import NARROW_ADAPTERS, SHORTEST, flash_runs, narrow_adapters
from tuneplan.planner.target import NODE_COUNTS
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding

if TYPE_CHECKING:
    from tuneplan.planner.plan import Plan
    from tuneplan.planner.search import Search


def smallest_change(search: "Search", plan: "Plan") -> str:
    """What to change so that the plan fits, in words; an empty text where nothing that was tried helps."""
    for words, changed in _changes(search, plan):
        if changed.short_by_bytes <= 0:
            return words
    return ""


def _changes(search: "Search", plan: "Plan") -> Iterator[tuple[str, "Plan"]]:
    """Changes from the one that alters training least to the one that alters it most.

    Those that only make activations smaller are left out where model states alone are too large.
    """
    request = plan.request
    settings = request.settings
    sharding = request.sharding
    method = request.method
    levels = plan.memory.phases["optimizer_step"].levels
    if levels[WEIGHTS] + levels[GRADIENTS] + levels[OPTIMIZER_STATES] < plan.usable_bytes:
        yield from _activations(search, plan)
    for name in ("adamw_8bit", "paged_adamw_8bit"):
        if request.optimizer.name != name:
            yield f"use --optimizer {name}", _try(search, plan, method, settings, sharding, name)
    if settings.precision == "master-weights":
        pure = replace(settings, precision="pure")
        for name in ("adamw_fused", "paged_adamw_8bit"):
            yield f"use --precision pure --optimizer {name}", _try(search, plan, method, pure, sharding, name)
    for count in NODE_COUNTS:
        if count > sharding.data_parallel and plan.target.instance is None and search.job.global_batch_size % count == 0:
            yield (
                f"shard over {count} GPUs (ZeRO-3)",
                _try(search, plan, method, settings, Sharding(count, 3, units=search.job.fsdp_units)),
            )
    adapted = any(isinstance(p, Lora) for p in method.parts)
    for number, name in enumerate(suited(request.spec, ("lora", "qlora"))):
        if not adapted or number:
            light = replace(settings, precision="pure", gradient_checkpointing="non-reentrant")
            yield f"use --method {name}", _try(search, plan, parse(name), light, sharding)


def _activations(search: "Search", plan: "Plan") -> Iterator[tuple[str, "Plan"]]:
    """Changes that make activations, logits and temporary buffers smaller."""
    request = plan.request
    settings = request.settings
    sharding = request.sharding
    method = request.method
    changed = replace(settings, gradient_checkpointing="non-reentrant")
    if settings.gradient_checkpointing == "off" and method.allows(changed):
        yield "turn gradient checkpointing on", _try(search, plan, method, changed, sharding)
    fused = replace(settings, loss="liger")
    if settings.loss == "eager" and request.spec.task == CAUSAL_LM and method.allows(fused):
        yield "use --loss liger", _try(search, plan, method, fused, sharding)
    if settings.attention == "sdpa" and flash_runs(settings) and has_flash(request.spec):
        yield "use --attention flash", _try(search, plan, method, replace(settings, attention="flash"), sharding)
    narrow = narrow_adapters(method, settings)
    if narrow is not None:
        yield NARROW_ADAPTERS, _try(search, plan, narrow, settings, sharding)
    length = settings.seq_len // 2
    while length >= SHORTEST:
        yield f"use --seq-len {length}", _try(search, plan, method, replace(settings, seq_len=length), sharding)
        length //= 2


def _try(
    search: "Search", plan: "Plan", method: Method, settings: Settings, sharding: Sharding, optimizer: str | None = None
) -> "Plan":
    chosen = OPTIMIZERS[optimizer] if optimizer else plan.request.optimizer
    try:
        return search.evaluate(method, plan.target, settings, chosen, sharding)
    except InputError:  # a traced model without a trace of that
        return plan
