"""A CUDA device that is played: graphs run their call when they are captured, and take a known time when they are replayed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

NAMES = ("Stream", "current_stream", "stream", "graph_pool_handle", "CUDAGraph", "Event", "_sleep")
MEMORY = ("synchronize", "memory_allocated", "max_memory_allocated", "reset_peak_memory_stats", "empty_cache")


class PlayedCuda:
    """What stands for `torch.cuda`.

    Args:
        seconds: of a replay of the n-th graph that was captured.
    """

    def __init__(self, seconds: Callable[[int], float] = lambda number: 1e-3) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.graphs = 0
        self.log: list[str] = []
        self.peak = 0
        self._current: Any = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In the place of the real functions."""
        for name in (*NAMES, *MEMORY):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name), raising=False)

    def Stream(self, device: Any = None) -> Any:  # noqa: N802 -- torch's name
        return SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)

    def current_stream(self, device: Any = None) -> Any:
        return self._current

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    def graph_pool_handle(self) -> int:
        return 1

    def CUDAGraph(self) -> Any:  # noqa: N802 -- torch's name
        number = self.graphs
        self.graphs += 1

        def replay() -> None:
            self.log.append(f"replay {number}")
            self.now += self.seconds(number)

        return SimpleNamespace(
            replay=replay,
            capture_begin=lambda pool: self.log.append(f"begin {number}"),
            capture_end=lambda: self.log.append(f"end {number}"),
        )

    def Event(self, enable_timing: bool = False) -> Any:  # noqa: N802 -- torch's name
        event = SimpleNamespace(at=0.0)

        def record() -> None:
            self.log.append("event")
            event.at = self.now

        event.record = record
        event.elapsed_time = lambda end: (end.at - event.at) * 1e3
        return event

    def _sleep(self, cycles: int) -> None:
        self.log.append("sleep")

    def synchronize(self, device: Any = None) -> None:
        self.log.append("wait")

    def memory_allocated(self, device: Any = None) -> int:
        return 100

    def max_memory_allocated(self, device: Any = None) -> int:
        return 100 + self.peak

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        self.peak = 0

    def empty_cache(self) -> None:
        pass
