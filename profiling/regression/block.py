"""The memory of any block of code, for tests and for loops that are not the Trainer's."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tuneplan.profiling.regression.reading import Place, Reading
from tuneplan.profiling.regression.tracked import read
from tuneplan.profiling.regression.watch import watch

_EMPTY = Reading(0, "", "", {}, {}, {})


@dataclass(slots=True)
class Memory:
    """What a block needed; filled when it ends.

    Attributes:
        reading: peaks, components and places.
    """

    reading: Reading = field(default=_EMPTY)

    @property
    def peak_bytes(self) -> int:
        """Most live bytes; with the model's weights where a model was given."""
        return self.reading.peak_bytes

    @property
    def components(self) -> dict[str, int]:
        """Bytes at the peak by component."""
        return dict(self.reading.at_peak)

    @property
    def phases(self) -> dict[str, int]:
        """Most live bytes in forward, backward and optimizer_step."""
        return dict(self.reading.phases)

    @property
    def places(self) -> tuple[Place, ...]:
        """Who holds the peak, most bytes first; empty on CUDA."""
        return self.reading.peak_places


@contextmanager
def track(model: nn.Module | Sequence[nn.Module] | None, optimizer: Any, device: str | None, root: Path) -> Iterator[Memory]:
    """Track the block.

    Args:
        model: whose weights count and whose modules are named; one, several or none.
        optimizer: whose states count from the start.
        device: "cpu", "meta" or "cuda"; None for the model's, or the CPU.
        root: of the project, to tell its lines from those of libraries.
    """
    models = [] if model is None else [model] if isinstance(model, nn.Module) else list(model)
    found = next((p.device.type for m in models for p in m.parameters()), "cpu")
    where = device or found
    memory = Memory()
    if where == "cuda":
        yield from _on_cuda(memory, bool(models))
        return
    with watch(root, where, models, [] if optimizer is None else [optimizer]) as tracker:
        start = len(tracker.log)
        yield memory
        log = list(tracker.log)
    memory.reading = read(log, start, len(log), root, tracker.callers)


def _on_cuda(memory: Memory, whole: bool) -> Iterator[Memory]:
    """By the caching allocator's own statistics: all that is allocated, or what the block adds where no model was given."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = 0 if whole else torch.cuda.memory_allocated()
    yield memory
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    memory.reading = Reading(peak, "", "", {"unattributed": peak}, {"unattributed": peak}, {})
