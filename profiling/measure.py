"""`plan profile` as a library: the real step on real tensors of this machine's GPU or CPU.

On CUDA the caching allocator's own statistics are read at every change of phase. On a CPU, which keeps no such statistics, the
storage tracker counts live bytes while two steps run; the steps that are timed run without it. Weights are random: neither memory
nor speed depends on their values.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.utils._pytree import tree_iter

from tuneplan.planner.errors import InputError
from tuneplan.planner.training.sharding import SINGLE, Sharding
from tuneplan.profiling import devices
from tuneplan.profiling.build import DTYPES, Built, build
from tuneplan.profiling.counts import Counts
from tuneplan.profiling.failures import Failure, failure_of
from tuneplan.profiling.losses import REAL_LOSSES
from tuneplan.profiling.measured import Measured, Timing
from tuneplan.profiling.meters import CudaMeter, PhaseMemory, ResidentMeter, device_in_use_bytes, resident_bytes, stored_bytes
from tuneplan.profiling.ranks import ALONE, Ranks, check, gather, group, spread
from tuneplan.profiling.step import run_step, trace_step
from tuneplan.profiling.subject import Subject
from tuneplan.profiling.timeline import Timeline
from tuneplan.profiling.trace import count
from tuneplan.profiling.tracker import StorageTracker, quantization_state

Told = Callable[[str, int, int], None]
MOST_STEPS = 10_000
WARMUP_STEPS, STEPS = 2, 5
_ERRORS = (RuntimeError, MemoryError, ValueError, TypeError, KeyError, AttributeError, IndexError, AssertionError)


def nobody(what: str, done: int, of: int) -> None:
    """Tell nobody how far a measurement is."""


def measure(
    subject: Subject,
    device: torch.device,
    warmup_steps: int = WARMUP_STEPS,
    steps: int = STEPS,
    sharding: Sharding = SINGLE,
    ranks: Ranks = ALONE,
    told: Told = nobody,
    attention: str = "",
) -> Measured:
    """Measure a steady training step.

    Args:
        subject: what to run.
        device: of this process.
        warmup_steps: before anything is timed; the first update makes the optimizer's states.
        steps: timed, after one whose phases are recorded.
        sharding: over the processes of `ranks`.
        ranks: this process among those that torchrun started.
        told: how far it is: (what, done, of how many).
        attention: a name that transformers knows; "" for the real one of the subject's settings.

    Returns:
        What was measured; a run that ended early for want of memory, or of its device, says so in `failure`.

    Raises:
        InputError: impossible steps or layout, a config that transformers refuses, a step that cannot run.
    """
    _check_steps(warmup_steps, steps)
    check(ranks, sharding, subject)
    devices.check(subject, device)
    run = _Run(subject, device, sharding, ranks, told, attention or devices.attention_of(subject, device))
    failure: Failure | None = None
    try:
        with group(ranks, device):
            run.load()
            (run.on_cuda if device.type == "cuda" else run.on_cpu)(warmup_steps, steps)
            run.gathered = gather(ranks, run.figures())
    except InputError as error:
        failure = failure_of(error.__cause__, run.phase)
        if failure is None:
            raise
    except _ERRORS as error:
        failure = failure_of(error, run.phase)
        if failure is None:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"the training step of {subject.id} cannot run: {type(error).__name__}: {reason}") from error
    return run.result(failure)


def _check_steps(warmup_steps: int, steps: int) -> None:
    if not 1 <= warmup_steps <= MOST_STEPS:
        raise InputError(
            f"--warmup-steps {warmup_steps} is not possible: the first update makes the optimizer's states; use 1 to {MOST_STEPS}"
        )
    if not 1 <= steps <= MOST_STEPS:
        raise InputError(f"--steps {steps} measures nothing that can be reported; use 1 to {MOST_STEPS}")


class _Run:
    """One measurement while it runs; what was seen so far survives its failure."""

    def __init__(
        self, subject: Subject, device: torch.device, sharding: Sharding, ranks: Ranks, told: Told, attention: str
    ) -> None:
        self.subject, self.device, self.sharding, self.ranks, self.told = subject, device, sharding, ranks, told
        self.attention = attention
        self.phase = "load"
        self.phases: dict[str, PhaseMemory] = {}
        self.counts: Counts | None = None
        self.seconds: list[float] = []
        self.load_seconds = 0.0
        self.weight_bytes = self.state_bytes = 0
        self.gathered: list[dict[str, Any]] = []
        self._meter = CudaMeter(device) if device.type == "cuda" else None
        self._built: Built | None = None
        self._kept: list[Any] = []

    @property
    def built(self) -> Built:
        """The model; it is there once `load` is over."""
        assert self._built is not None
        return self._built

    def load(self) -> None:
        """Build the model and count its weights; on a CPU with every storage tracked."""
        self.told("building the model", 0, 1)
        start = time.perf_counter()
        if self._meter is not None:
            self._meter.phase("load")
            built = self._made()
            torch.cuda.empty_cache()  # what quantizing layer by layer left behind belongs to no step
            self._meter.phase("")
        else:
            with StorageTracker("cpu") as tracker:
                built = self._made()
            self.phases["load"] = PhaseMemory.of(Timeline.of(tracker).peak())
        self.load_seconds = time.perf_counter() - start
        model = built.model
        held = (*model.parameters(), *model.buffers(), *quantization_state(model))
        self.weight_bytes = stored_bytes(held, self.device.type)
        self._built = built
        self.told("building the model", 1, 1)

    def _made(self) -> Built:
        built = build(self.subject, self.attention, str(self.device))
        self.counts = count(built.model)
        return spread(built, self.subject, self.sharding, self.ranks, self.device)

    def on_cuda(self, warmup_steps: int, steps: int) -> None:
        """Warm up, record a step's phases, then time steps that nothing disturbs."""
        assert self._meter is not None
        self._several("warm-up", warmup_steps, self._note)
        self._meter.phase("")

        def both(name: str) -> None:
            self._note(name)
            assert self._meter is not None
            self._meter.phase("" if name == "end" else name)

        self._step(both)
        self._timed(steps, self._note)
        self.state_bytes = stored_bytes(self._states(), "cuda")

    def on_cpu(self, warmup_steps: int, steps: int) -> None:
        """Two tracked steps, then warm-up and steps that are timed without the tracker."""
        self.phase = "tracked steps"
        self.told("tracked steps", 0, 1)
        accumulation = min(self.subject.gradient_accumulation_steps, 2)
        traced = trace_step(self.built, self.subject.settings, accumulation=accumulation)
        self.phases |= {name: PhaseMemory.of(peak) for name, peak in traced.phases.items()}
        self.told("tracked steps", 1, 1)
        resident = ResidentMeter()

        def both(name: str) -> None:
            self._note(name)
            resident.phase(name)

        self._several("warm-up", warmup_steps, self._note)
        self._timed(steps, both)
        self.state_bytes = stored_bytes(self._states(), "cpu")
        for name, size in resident.resident.items():
            if name in self.phases:
                self.phases[name] = replace(self.phases[name], resident_bytes=size)

    def _note(self, name: str) -> None:
        if name != "end":
            self.phase = name

    def _several(self, what: str, steps: int, phase: Callable[[str], None]) -> None:
        for done in range(steps):
            self.told(what, done, steps)
            self._step(phase)
        self.told(what, steps, steps)

    def _timed(self, steps: int, phase: Callable[[str], None]) -> None:
        for done in range(steps):
            self.told("timed steps", done, steps)
            self._wait()
            start = time.perf_counter()
            self._step(phase)
            self._wait()
            self.seconds.append(time.perf_counter() - start)
        self.told("timed steps", steps, steps)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _step(self, phase: Callable[[str], None]) -> None:
        subject = self.subject
        loss = REAL_LOSSES[subject.settings.loss]
        accumulation = subject.gradient_accumulation_steps
        run_step(self.built, subject.settings, phase, self._context(), accumulation, self._kept, loss)

    def _context(self) -> Callable[[], AbstractContextManager[object]]:
        lower = self.subject.settings.autocast
        return partial(torch.autocast, self.device.type, dtype=DTYPES[lower]) if lower else nullcontext

    def _states(self) -> Iterator[Any]:
        yield from tree_iter(list(self.built.optimizer.state.values()))

    def _seen(self) -> dict[str, PhaseMemory]:
        return dict(self._meter.phases) if self._meter is not None else self.phases

    def figures(self) -> dict[str, Any]:
        """What this rank measured, for the others."""
        return {
            "rank": self.ranks.rank,
            "phases": {name: phase.to_json() for name, phase in self._seen().items()},
            "step_seconds": median(self.seconds) if self.seconds else None,
            "resident_peak_bytes": resident_bytes(peak=True),
        }

    def result(self, failure: Failure | None) -> Measured:
        """All of it, whole or broken off."""
        if failure is not None and self._meter is not None:
            with suppress(RuntimeError):  # a device that is gone
                self._meter.close()
        return Measured(
            subject=self.subject,
            device=self.device,
            sharding=self.sharding,
            counts=self.counts,
            phases=self._seen(),
            timing=Timing(tuple(self.seconds), self.load_seconds, self.ranks.count),
            weight_bytes=self.weight_bytes,
            state_bytes=self.state_bytes,
            attention=self.attention,
            failure=failure,
            ranks=tuple(self.gathered) or (self.figures(),),
            in_use_bytes=device_in_use_bytes(self.device) if self._meter is not None else None,
        )
