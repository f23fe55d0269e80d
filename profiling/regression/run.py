"""One case -> one reading: a trace, a real step on the CPU or on a GPU, or a user's entry point."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph.tensor import CATEGORIES
from tuneplan.profiling.regression.cases import Case
from tuneplan.profiling.regression.entry import run_entry
from tuneplan.profiling.regression.reading import Reading


def run(case: Case, root: Path) -> Reading:
    """The memory of a case. Raises InputError for what cannot run; the message names the case."""
    try:
        if case.entry_point:
            return run_entry(case, root)
        return _planned(case, root)
    except InputError as error:
        named = str(error) if f"case {case.name}" in str(error) else f"case {case.name}: {error}"
        raise InputError(named) from error


def _planned(case: Case, root: Path) -> Reading:
    """A step that is described in words."""
    import torch

    from tuneplan.profiling.build import build
    from tuneplan.profiling.command import subject_of
    from tuneplan.profiling.quiet import quiet
    from tuneplan.profiling.regression.tracked import read
    from tuneplan.profiling.step import STEP_PHASES, trace_step
    from tuneplan.profiling.trace import count, trace

    quiet()
    subject = subject_of(case.asked(root))
    if case.device == "gpu":
        return _on_gpu(subject)
    extended: Mapping[str, Any] = {}
    if case.device == "cpu":
        torch.manual_seed(0)
        try:
            built = build(subject, "sdpa" if subject.settings.attention == "sdpa" else "eager", "cpu")
            step = trace_step(built, subject.settings, accumulation=subject.gradient_accumulation_steps)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            raise InputError(f"the step cannot run on the CPU: {' '.join(str(error).split())[:200]}") from error
        counts = count(built.model)
    else:
        traced = trace(subject)
        step, counts = traced.step, traced.counts
        extended = traced.phases if traced.extended_from else {}
    facts = {"parameters": counts.total, "trainable_parameters": counts.trainable}
    spans = [step.timeline.shown[name] for name in STEP_PHASES]
    found = read(step.timeline.log, min(s for s, _ in spans), max(e for _, e in spans), root, facts=facts)
    if not extended:
        return found
    steps = {name: extended[name] for name in STEP_PHASES}
    name = max(steps, key=lambda phase: steps[phase].peak_bytes)
    levels = [max(values) for values in zip(*(phase.levels for phase in steps.values()), strict=True)]
    return replace(
        found,
        peak_bytes=steps[name].peak_bytes,
        phase=name,
        op=steps[name].op,
        at_peak=dict(zip(CATEGORIES, steps[name].levels, strict=True)),
        highest=dict(zip(CATEGORIES, levels, strict=True)),
        phases={phase: peak.peak_bytes for phase, peak in steps.items()},
        places={},
        peak_places=(),
    )


def _on_gpu(subject: Any) -> Reading:
    """The caching allocator's own figures; they know no places."""
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            "the case is to run on a GPU, and torch sees none here; use device = 'meta' or 'cpu', or another machine"
        )
    from tuneplan.profiling.measure import measure

    seen = measure(subject, torch.device("cuda"))
    counts = seen.counts
    if seen.failure is not None or counts is None:
        raise InputError(
            f"the step on the GPU ended early: {seen.failure.line if seen.failure else 'no model'}; use a smaller batch"
        )
    names = [name for name in ("forward", "backward", "optimizer_step") if name in seen.phases]
    components = {k: v for k, v in seen.components.items() if k != "runtime"}
    return Reading(
        peak_bytes=seen.allocated_bytes,
        phase=seen.peak_phase,
        op="",
        at_peak=components,
        highest=components,
        phases={name: seen.phases[name].peak_bytes for name in names},
        facts={"parameters": counts.total, "trainable_parameters": counts.trainable},
    )
