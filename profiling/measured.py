"""A measured step: what was seen on a device, in the common document of estimated, traced and measured steps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from tuneplan.planner.graph.tensor import CATEGORIES
from tuneplan.planner.training.sharding import Sharding
from tuneplan.profiling.counts import Counts
from tuneplan.profiling.failures import Failure
from tuneplan.profiling.meters import PhaseMemory, resident_bytes
from tuneplan.profiling.step import STEP_PHASES
from tuneplan.profiling.subject import Subject
from tuneplan.profiling.trace import stack


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of every timed step and of building the model, and how many processes worked on a step."""

    steps: tuple[float, ...]
    load_seconds: float
    ranks: int = 1

    @property
    def step_seconds(self) -> float | None:
        """The median step; None where none was timed."""
        return median(self.steps) if self.steps else None

    def tokens_per_second(self, subject: Subject) -> float | None:
        """Tokens of all ranks in the median step, over its seconds."""
        seconds, s = self.step_seconds, subject.settings
        tokens = s.micro_batch_size * s.seq_len * subject.gradient_accumulation_steps * self.ranks
        return tokens / seconds if seconds else None


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of a step, all of it or until it failed.

    Attributes:
        subject: what ran.
        device: where.
        sharding: over how many processes, and what they split.
        counts: parameters; None where the model was never finished.
        phases: by name, those that were reached.
        timing: seconds.
        weight_bytes: of weights, buffers and quantization state on the device, this rank's.
        state_bytes: of optimizer state on the device, this rank's; 0 where none was made.
        attention: transformers' name of the implementation that ran.
        failure: why it ended early, or None.
        ranks: the figures of every process.
        estimated: the planner's document for the same step; None where it does not know the model or the method.
        process_peak_bytes: host memory of the process at most.
        in_use_bytes: memory of the card that was not free at the end, other processes included.
    """

    subject: Subject
    device: torch.device
    sharding: Sharding
    counts: Counts | None
    phases: Mapping[str, PhaseMemory]
    timing: Timing
    weight_bytes: int
    state_bytes: int
    attention: str
    failure: Failure | None
    ranks: tuple[dict[str, Any], ...]
    estimated: Mapping[str, Any] | None = None
    process_peak_bytes: int | None = field(default_factory=lambda: resident_bytes(peak=True))
    in_use_bytes: int | None = None

    @property
    def on_cuda(self) -> bool:
        """Whether the caching allocator's own figures are there."""
        return self.device.type == "cuda"

    @property
    def peak_phase(self) -> str:
        """The phase of the highest allocated peak; "" where none was reached. Loading counts only where no step ran."""
        names = [name for name in STEP_PHASES if name in self.phases] or list(self.phases)
        return max(names, key=lambda name: self.phases[name].peak_bytes, default="")

    @property
    def allocated_bytes(self) -> int:
        """That peak; 0 where nothing was reached."""
        return self.phases[self.peak_phase].peak_bytes if self.phases else 0

    @property
    def reserved_bytes(self) -> int | None:
        """Most bytes that the allocator held in a step (while loading where no step ran); None on a CPU."""
        steps = [self.phases[name] for name in STEP_PHASES if name in self.phases] or list(self.phases.values())
        return max((phase.reserved_peak_bytes for phase in steps if phase.reserved_peak_bytes is not None), default=None)

    @property
    def device_bytes(self) -> int | None:
        """Device memory of the process at most, by NVML; of the card where NVML cannot see the process; None on a CPU."""
        seen = max((phase.process_bytes for phase in self.phases.values() if phase.process_bytes is not None), default=None)
        return seen if seen is not None else self.in_use_bytes

    @property
    def components(self) -> dict[str, int]:
        """Bytes at the peak by category where storages were tracked; on CUDA what can be counted, and the rest in one sum."""
        if not self.phases:
            return {}
        levels = self.phases[self.peak_phase].levels
        if levels:
            return dict(zip(CATEGORIES, levels, strict=True))
        known = {"weights": self.weight_bytes, "optimizer_states": self.state_bytes}
        found = {**known, "unattributed": max(self.allocated_bytes - sum(known.values()), 0)}
        if self.device_bytes is not None and self.reserved_bytes is not None:
            found["runtime"] = max(self.device_bytes - self.reserved_bytes, 0)
        return found

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know."""
        found = [] if self.failure is None else [f"The run ended early, {self.failure.line}"]
        if not self.on_cuda:
            found.append(
                "The CPU's own kernels differ from a GPU's in what they keep, attention above all; --attention eager is alike."
            )
            if self.sharding.data_parallel > 1 and not self.sharding.zero_stage:
                found.append("DDP's buckets are made outside of Python; on a CPU they are not seen.")
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """The common document; `failure`, `timing`, `ranks` and `estimated` are its own."""
        counts, timing = self.counts, self.timing
        layout = {"data_parallel": self.sharding.data_parallel, "zero_stage": self.sharding.zero_stage}
        return {
            "source": "measured",
            "request": {**self.subject.request(), **layout},
            "parameters": {"total": counts.total, "trainable": counts.trainable} if counts else None,
            "peak": {
                "allocated_bytes": self.allocated_bytes,
                "reserved_bytes": self.reserved_bytes,
                "device_bytes": self.device_bytes,
                "host_bytes": self.process_peak_bytes,
                "phase": self.peak_phase,
                "op": self.phases[self.peak_phase].op if self.phases else "",
            },
            "phases": {name: phase.to_json() for name, phase in self.phases.items()},
            "components": self.components,
            "checkpoint_bytes": counts.checkpoint_bytes if counts else None,
            "step_seconds": timing.step_seconds,
            "tokens_per_second": timing.tokens_per_second(self.subject),
            "basis": self.basis(),
            "warnings": list(self.warnings),
            "failure": self.failure.to_json() if self.failure else None,
            "timing": {"step_seconds": list(timing.steps), "load_seconds": timing.load_seconds},
            "ranks": list(self.ranks),
            "estimated": self.estimated,
        }

    def basis(self) -> dict[str, str]:
        """How each figure was measured."""
        if self.on_cuda:
            by_nvml = any(phase.process_bytes is not None for phase in self.phases.values())
            return {
                "stack": stack(),
                "attention": self.attention,
                "allocated_bytes": "measured: torch.cuda.max_memory_allocated, reset at every change of phase",
                "reserved_bytes": "measured: torch.cuda.max_memory_reserved; the cache was emptied after loading",
                "device_bytes": "measured: NVML, this process" if by_nvml else "measured: the card's memory that is not free",
                "components": "counted: weights and optimizer states; the rest of the peak is not told apart",
                "host_bytes": "measured: highest resident memory of the process",
                "step_seconds": "measured: median of the timed steps, the device synchronized before and after",
            }
        return {
            "stack": stack(),
            "attention": self.attention,
            "allocated_bytes": "measured: live storages of the real step, each rounded up to 512 bytes",
            "reserved_bytes": "not known on a CPU",
            "components": "measured: by the tracker's categories",
            "host_bytes": "measured: highest resident memory of the process",
            "step_seconds": "measured: median of the timed steps, without the tracker",
        }
