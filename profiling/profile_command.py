"""What `plan profile` does, from the words of the command line to a report and a result file."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from tuneplan.planner.cli.step_words import Asked
from tuneplan.planner.errors import InputError
from tuneplan.planner.estimate import estimate
from tuneplan.planner.report import document
from tuneplan.planner.training.sharding import SINGLE
from tuneplan.planner.units import format_gib
from tuneplan.profiling import devices
from tuneplan.profiling.build import build
from tuneplan.profiling.command import subject_of
from tuneplan.profiling.files import check_writable, write_atomic
from tuneplan.profiling.measure import Told, measure, nobody
from tuneplan.profiling.measured import Measured
from tuneplan.profiling.measured_report import measured_report
from tuneplan.profiling.meters import available_bytes
from tuneplan.profiling.provenance import provenance
from tuneplan.profiling.quiet import quiet
from tuneplan.profiling.ranks import Ranks, from_environment
from tuneplan.profiling.subject import Subject
from tuneplan.profiling.trace import count


@dataclass(frozen=True, slots=True)
class Outcome:
    """A measurement, and where it comes from.

    Attributes:
        measured: the measurement.
        origin: its provenance.
        capacity_bytes: of the card that was named, to hold the peak against.
        ranks: this process among those that torchrun started.
    """

    measured: Measured
    origin: dict[str, Any]
    capacity_bytes: int | None
    ranks: Ranks

    @property
    def exit_code(self) -> int:
        """0, or 1 where the run ended early or does not fit the card that was named."""
        device = self.measured.device_bytes or self.measured.allocated_bytes
        too_large = self.capacity_bytes is not None and device > self.capacity_bytes
        return 1 if too_large or self.measured.failure is not None else 0

    @property
    def reports(self) -> bool:
        """Whether this process prints and writes: the first, or one that failed and leaves the others waiting."""
        return self.ranks.first or self.measured.failure is not None

    def to_json(self) -> dict[str, Any]:
        """The common document with its provenance."""
        return {**self.measured.to_json(), "provenance": self.origin}

    def report(self) -> RenderableType:
        """For a terminal."""
        return measured_report(self.measured, self.origin)


def run_profile(asked: Asked, device: str, warmup_steps: int, steps: int, out: Path | None) -> Outcome:
    """Measure what was asked for.

    Args:
        asked: the configuration.
        device: auto, cuda or cpu.
        warmup_steps: before anything is timed.
        steps: timed.
        out: file for the JSON document.

    Raises:
        InputError: what was asked for cannot run here, or a file cannot be read or written.
    """
    quiet()
    if asked.settings.routing != "even":
        raise InputError(
            f"--routing {asked.settings.routing} cannot be profiled: a real step routes as its random weights do; leave it out"
        )
    if out is not None:
        check_writable(out)
    ranks = from_environment()
    chosen = devices.choose(device, ranks)
    subject = subject_of(replace(asked, sharding=SINGLE))
    subject = replace(subject, gradient_accumulation_steps=asked.gradient_accumulation_steps)
    if chosen.type == "cuda":
        card = torch.cuda.get_device_capability(chosen)
        asked = replace(asked, settings=replace(asked.settings, compute_capability=card))
    known = beside(asked)
    if chosen.type == "cpu":
        needed = known["peak"]["allocated_bytes"] if known is not None else weight_bytes(subject)
        refuse_what_cannot_fit(needed * ranks.count)
    with progress(ranks.first) as told:
        seen = measure(subject, chosen, warmup_steps, steps, asked.sharding, ranks, told)
    outcome = Outcome(replace(seen, estimated=known), provenance(chosen), asked.capacity_bytes, ranks)
    if seen.failure is not None:
        click.echo(f"plan: {seen.failure.line}; what was measured so far is kept", err=True)
    if out is not None and outcome.reports:
        write_atomic(out, (document.text(outcome.to_json()) + "\n").encode())
    return outcome


def beside(asked: Asked) -> dict[str, Any] | None:
    """The planner's peak and phases of the same step; None where it does not know the model or the PEFT config.

    Raises:
        InputError: it knows the model, and the method, given in its own words, does not fit it.
    """
    try:
        request = asked.request()
    except InputError:
        return None
    try:
        found = estimate(request, advice=False).to_json()
    except InputError:
        if asked.peft_config is None:
            raise
        return None
    return {name: found[name] for name in ("peak", "phases", "components", "step_seconds", "tokens_per_second", "basis")}


def weight_bytes(subject: Subject) -> int:
    """Bytes of the weights, which a step needs at least; 0 where they cannot be known without values."""
    try:
        return count(build(subject, "eager", "meta").model).weight_bytes
    except (NotImplementedError, RuntimeError):
        return 0


def refuse_what_cannot_fit(needed_bytes: int) -> None:
    """Raise InputError for more than this machine's free memory: the system would end the process without a word."""
    free = available_bytes()
    if free is not None and needed_bytes > free:
        raise InputError(
            f"the step needs about {format_gib(needed_bytes)}, and this machine has {format_gib(free)} of memory free; "
            "use plan trace, a smaller batch, or a GPU"
        )


@contextmanager
def progress(shown: bool) -> Iterator[Told]:
    """A progress bar on stderr, where that is a terminal."""
    if not shown or not sys.stderr.isatty():
        yield nobody
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def told(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=of)
            bar.update(tasks[what], completed=done)

        yield told
