"""How long a call takes: on the device, replayed from a CUDA graph, and as its caller waits for it.

Device time: each call is captured once for each of several sets of inputs that together exceed the second-level cache three
times, and replayed in turn, between two events. A kernel that sleeps is queued first, so that the device never waits for the
host between the events. Call time: from Python, until the device is done.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

Call = Callable[[], Any]
LEAST_SETS, MOST_SETS = 4, 64
CACHE_TIMES = 3
"""Sets of inputs together are larger than the second-level cache by this factor."""
_ROUND_SECONDS = 5e-3
_LEAST_CALLS, _MOST_CALLS = 4, 100
_SLEEP_CYCLES = 40_000
"""For each replay that is queued, some 20 us, longer than the host takes to queue it."""


def cache_bytes(device: torch.device) -> int:
    """Bytes of a GPU's second-level cache; 0 for a CPU, which is given LEAST_SETS."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size) if device.type == "cuda" else 0


def sets_for(set_bytes: int, device: torch.device) -> int:
    """How many sets of inputs are made, each of some bytes."""
    return min(max(LEAST_SETS, -(-CACHE_TIMES * cache_bytes(device) // max(set_bytes, 1))), MOST_SETS)


def calls_for(seconds: float) -> int:
    """Calls of a round, so that it takes about 5 ms."""
    return min(max(int(_ROUND_SECONDS / max(seconds, 1e-9)), _LEAST_CALLS), _MOST_CALLS)


@dataclass(slots=True)
class CallClock:
    """Seconds until a call's result is there, from Python."""

    calls: Sequence[Call]
    device: torch.device
    count: int = 0
    _turn: int = 0

    def __post_init__(self) -> None:
        """Warm up, and choose the calls of a round."""
        if not self.count:
            self.one()
            self.count = calls_for(min(self.one(), self.one()))

    def one(self) -> float:
        """One call on the next set of inputs."""
        call = self.calls[self._turn % len(self.calls)]
        self._turn += 1
        wait(self.device)
        start = time.perf_counter()
        call()
        wait(self.device)
        return time.perf_counter() - start

    def round(self) -> float:
        """The median of a round's calls."""
        return median(self.one() for _ in range(self.count))


@dataclass(slots=True)
class GraphClock:
    """Seconds of a call on the device: CUDA graphs of one call each, events around every replay.

    Raises what the capture raises, for a call that cannot be captured.
    """

    calls: Sequence[Call]
    device: torch.device
    results: list[Any] = field(default_factory=list)
    _graphs: list[Any] = field(default_factory=list)
    _count: int = 0
    _turn: int = 0

    def __post_init__(self) -> None:
        """Warm up every call (each may compile), and capture; results stay alive, so that each set writes to its own memory."""
        side, current = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)
        side.wait_stream(current)
        pool = torch.cuda.graph_pool_handle()
        with torch.cuda.stream(side):
            for call in self.calls:
                call()
            wait(self.device)
            for call in self.calls:
                self._graphs.append(self._captured(call, pool))
        current.wait_stream(side)
        self.replay(_LEAST_CALLS)
        self._count = max(calls_for(min(self.replay(_LEAST_CALLS))), min(len(self.calls), _MOST_CALLS))

    def _captured(self, call: Call, pool: Any) -> Any:
        """A graph of one call, on the current stream; `torch.cuda.graph` would empty the allocator's cache each time."""
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=pool)
        try:
            self.results.append(call())
        except BaseException:
            with suppress(RuntimeError):
                graph.capture_end()
            raise
        graph.capture_end()
        return graph

    def replay(self, count: int) -> list[float]:
        """Seconds of some replays, each on the next set of inputs."""
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
        torch.cuda._sleep(_SLEEP_CYCLES * count)
        for start, end in events:
            start.record()
            self._graphs[self._turn % len(self._graphs)].replay()
            end.record()
            self._turn += 1
        wait(self.device)
        return [start.elapsed_time(end) / 1e3 for start, end in events]

    def round(self) -> float:
        """The median of a round's replays."""
        return median(self.replay(self._count))

    def once(self) -> Any:
        """Replay the first graph, and give what it wrote."""
        self._graphs[0].replay()
        wait(self.device)
        return self.results[0]


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """Bytes that a call takes from the allocator at its fullest, its result among them; None on a CPU, which counts none."""
    if device.type != "cuda":
        return None
    wait(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    wait(device)
    return int(torch.cuda.max_memory_allocated(device)) - before


def free(device: torch.device) -> None:
    """Give cached blocks back, between cases."""
    import gc

    gc.collect()
    if device.type == "cuda":
        with suppress(RuntimeError):
            torch.cuda.empty_cache()
