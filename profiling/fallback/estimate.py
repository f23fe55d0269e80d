"""`plan estimate` of an architecture that no family mirrors: the real code's step at the asked batch and length."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.text import Text

from tuneplan.planner.cli.step_words import Asked
from tuneplan.planner.device_memory import runtime_bytes
from tuneplan.planner.report.terminal import facts
from tuneplan.planner.units import format_gib, format_seconds
from tuneplan.profiling.command import subject_of
from tuneplan.profiling.fallback import cache
from tuneplan.profiling.fallback.clock import TracedTime, step_time
from tuneplan.profiling.fallback.program import Program, described, program
from tuneplan.profiling.fallback.recorder import record
from tuneplan.profiling.fallback.recording import Recording
from tuneplan.profiling.quiet import quiet
from tuneplan.profiling.replay import replay
from tuneplan.profiling.report import trace_report
from tuneplan.profiling.subject import Subject
from tuneplan.profiling.trace import CannotRunError, Traced, loaded, trace

MOST_PROGRAMS = 8
"""Of a configuration; the ones that were made last stay."""


@dataclass(frozen=True, slots=True)
class TracedEstimate:
    """An estimate from the real code.

    Attributes:
        asked: the configuration.
        reason: why there is no estimate from the ledger.
        traced: the step at the asked batch and length.
        program: what it was read from; None where the step was run as asked, because it cannot be fitted.
        kept: where the program is kept; "" where it is not.
        time: None without a GPU, or without a program.
    """

    asked: Asked
    reason: str
    traced: Traced
    program: Program | None
    kept: str
    time: TracedTime | None

    @property
    def device_bytes(self) -> int:
        """Peak that the driver sees."""
        return self.traced.reserved_bytes + self.traced.runtime.total_bytes

    @property
    def exit_code(self) -> int:
        """0, or 1 where the step does not fit the card."""
        capacity = self.asked.capacity_bytes
        return 1 if capacity is not None and self.device_bytes > capacity else 0

    @property
    def source(self) -> str:
        """Where the bytes come from, in words."""
        found = self.program
        if found is None:
            return "traced: the real code's step as asked"
        return described(found.domain, found.points, found.residual)

    def to_json(self) -> dict[str, Any]:
        """The common document of estimated, traced and measured steps."""
        body, seconds = self.traced.to_json(), self.time
        steps = self.asked.gradient_accumulation_steps
        gpu = self.asked.gpu
        if gpu is None or seconds is None:
            basis = "no GPU named" if gpu is None else "not known: the step was run as asked and its operators not recorded"
        else:
            basis = seconds.reason or "modelled: a roofline over the operators of the trace with stated efficiencies"
        return {
            **body,
            "request": {**body["request"], "gradient_accumulation_steps": steps, "gpu": gpu.id if gpu else None},
            "step_seconds": seconds.seconds if seconds else None,
            "tokens_per_second": seconds.tokens_per_second if seconds else None,
            "basis": {**body["basis"], "allocated_bytes": self.source, "step_seconds": basis, "cache": self.kept or "not kept"},
            "savings": [],
            "warnings": [self.reason, *body["warnings"]],
        }

    def report(self) -> RenderableType:
        """For a terminal."""
        traced = self.traced
        rows = [
            ("checkpoint", format_gib(traced.counts.checkpoint_bytes)),
            ("host memory", f"{format_gib(traced.counts.host_bytes)} (modelled)"),
        ]
        if self.time is not None and self.time.seconds is not None and self.time.tokens_per_second is not None:
            rows.append(("step", f"{format_seconds(self.time.seconds)}, {self.time.tokens_per_second:,.0f} tokens/s (modelled)"))
        elif self.time is not None:
            rows.append(("step", f"not known: {self.time.reason}"))
        capacity = self.asked.capacity_bytes
        if capacity is not None:
            left = format_gib(abs(capacity - self.device_bytes))
            rows.append(("fits", f"yes, {left} left" if self.device_bytes <= capacity else f"no, short by {left}"))
        rows += [("source", self.source), ("kept in", self.kept or "nowhere")]
        return Group(trace_report(traced), Text(), facts(rows), Text(f"! {self.reason}", style="yellow"))


def estimate_traced(asked: Asked, reason: str) -> TracedEstimate:
    """Estimate from the real code.

    Args:
        asked: the configuration.
        reason: why the ledger has no estimate, for the report.

    Raises:
        InputError: transformers refuses the config, PEFT the method, or the step cannot run.
    """
    quiet()
    start = time.perf_counter()
    subject = subject_of(asked)
    gpu = asked.gpu
    capability, vendor = (gpu.compute_capability, gpu.vendor) if gpu else (None, "nvidia")
    found, kept = (None, "") if subject.batch_lengths else _program(subject)
    if found is None:
        return TracedEstimate(asked, reason, trace(subject, capability, vendor), None, "", None)
    s = subject.settings
    batch, length = int(s.micro_batch_size), int(s.seq_len)
    step = found.step(batch, length)
    quantized = any(part.label == "quantized_base" for part in subject.method.parts)
    traced = Traced(
        subject=subject,
        counts=found.counts,
        phases={"load": loaded(step), **step.phases},
        reserved=replay(step.timeline, s.compute_capability, subject.expandable_segments, subject.empty_cache_steps),
        runtime=runtime_bytes(vendor, capability, 1, quantized),
        step=step,
        seconds=time.perf_counter() - start,
        notes=found.recording.notes,
    )
    seconds = None
    if gpu is not None:
        recorded, steps = subject.gradient_accumulation_steps, asked.gradient_accumulation_steps
        seconds = step_time(found.operators(batch, length), gpu, batch * length, recorded, steps)
    return TracedEstimate(asked, reason, traced, found, kept, seconds)


def _program(subject: Subject) -> tuple[Program | None, str]:
    """The program that covers a subject's batch and length, and where it is kept; None where the step cannot be recorded."""
    s = subject.settings
    batch, length = int(s.micro_batch_size), int(s.seq_len)
    known = cache.load(subject)
    found = covering(known, batch, length)
    if found is not None:
        return found, str(cache.path(subject))
    traces = 0

    def traced(batch: int, length: int) -> Recording:
        nonlocal traces
        recording = record(subject, batch, length)
        if not traces:
            click.echo(f"plan: tracing the real code of {subject.config['model_type']}; kept for the next time", err=True)
        traces += 1
        return recording

    try:
        found = program(traced, batch, length)
    except CannotRunError:
        return None, ""
    return found, cache.store(subject, [found, *known][:MOST_PROGRAMS])


def covering(known: Sequence[Program], batch: int, length: int) -> Program | None:
    """The first program that holds at a point."""
    return next((program for program in known if program.domain.covers(batch, length)), None)
