"""What `plan trace` does, from the words of the command line to a report."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Group, RenderableType

from tuneplan.planner.cli.step_words import Asked
from tuneplan.planner.errors import InputError
from tuneplan.planner.estimate import estimate
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models.config import read_config_file
from tuneplan.planner.models.registry import as_known
from tuneplan.profiling.quiet import quiet
from tuneplan.profiling.report import trace_report, verification_report
from tuneplan.profiling.subject import FULL, Subject
from tuneplan.profiling.trace import Traced, trace
from tuneplan.profiling.verify import Verification, verify


@dataclass(frozen=True, slots=True)
class Outcome:
    """A trace, and where asked its comparison with the estimate.

    Attributes:
        traced: the trace.
        verification: beside the estimate.
        capacity_bytes: of the card, to hold the peak against.
    """

    traced: Traced
    verification: Verification | None
    capacity_bytes: int | None

    @property
    def exit_code(self) -> int:
        """0, or 1 where the step does not fit the card."""
        device = self.traced.reserved_bytes + self.traced.runtime.total_bytes
        return 1 if self.capacity_bytes is not None and device > self.capacity_bytes else 0

    def to_json(self) -> dict[str, Any]:
        """The common document; `verification` in it where asked."""
        body = self.traced.to_json()
        return body if self.verification is None else {**body, "verification": self.verification.to_json()}

    def report(self) -> RenderableType:
        """For a terminal."""
        parts: list[RenderableType] = [trace_report(self.traced)]
        if self.verification is not None:
            parts.append(verification_report(self.verification))
        return Group(*parts)


def subject_of(asked: Asked) -> Subject:
    """The real step that was asked for. Raises InputError for what a single process cannot run, and a broken PEFT config."""
    if asked.sharding.gpu_count > 1 or asked.sharding.zero_stage or asked.sharding.offload:
        raise InputError(f"{asked.sharding.label} cannot be traced in one process; trace one GPU's step, without sharding")
    method, adapter = asked.method, None
    if asked.peft_config is not None:
        adapter = read_config_file(asked.peft_config, "adapter_config.json")
        kept = tuple(part for part in method.parts if part.peft_config() is None)
        method = Method("+".join(part.label for part in kept), kept) if kept else FULL
    return Subject(
        id=asked.id,
        config=as_known(asked.config).mapping,
        method=method,
        peft_config=adapter,
        settings=replace(asked.settings, accumulating=asked.gradient_accumulation_steps > 1),
        optimizer=asked.optimizer,
        gradient_accumulation_steps=min(asked.gradient_accumulation_steps, 2),
        task=asked.real_task,
        expandable_segments=asked.expandable_segments,
        batch_lengths=asked.batch_lengths,
        empty_cache_steps=asked.empty_cache_steps,
    )


def run_trace(asked: Asked, side_by_side: bool, timeline: Path | None, snapshot: Path | None) -> Outcome:
    """Trace what was asked for.

    Args:
        asked: the configuration.
        side_by_side: also estimate it, and compare.
        timeline: where to write live bytes over the step (.png, .svg or .pickle).
        snapshot: of a real run, to lay beside the timeline.

    Raises:
        InputError: what was asked for cannot be traced, or a file cannot be read or written.
    """
    quiet()
    write: Callable[[Traced], str] | None = None
    if timeline is not None or snapshot is not None:
        from tuneplan.profiling.plot import writer

        write = writer(timeline, snapshot)
    subject = subject_of(asked)
    estimated = estimate(asked.request(), advice=False) if side_by_side else None
    gpu = asked.gpu
    traced = trace(subject, gpu.compute_capability if gpu else None, gpu.vendor if gpu else "nvidia")
    if write is not None:
        click.echo(f"plan: {write(traced)}", err=True)
    verification = verify(estimated, traced) if estimated is not None else None
    return Outcome(traced, verification, asked.capacity_bytes)
