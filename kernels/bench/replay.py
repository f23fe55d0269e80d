"""The cases under pytest-benchmark: measured rounds replayed on a clock that they alone move.

pytest-benchmark reads a timer before and after a call. This one advances by the seconds of a round as the harness measured
them (on a GPU from events of the device), so that its statistics and its JSON are of kernels, not of launches. Each reading
adds a nanosecond, so that probes of the timer's precision end.
"""

from functools import cache
from typing import Any

from tuneplan.kernels.bench.cases import FIRST_CASES, Case
from tuneplan.kernels.bench.catalog import default_cases
from tuneplan.kernels.bench.ceilings import Ceilings, measure
from tuneplan.kernels.bench.machine import Machine, machine_of
from tuneplan.kernels.bench.registry import KERNELS
from tuneplan.kernels.bench.rows import Row
from tuneplan.kernels.bench.run import run_case

TICK = 1e-9
_KEPT = ("share_of_copy", "share_of_roofline", "minimum_bytes", "moved_bytes", "moved_bytes_per_second", "flops", "peak_bytes")
_CONTEXT = ("clock", "versus", "correctness", "copy_bytes_per_second", "product_flops_per_second", "provenance")


class VirtualClock:
    """A timer in seconds that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The time, a nanosecond later at each reading."""
        self.now += TICK
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


CLOCK = VirtualClock()


@cache
def machine() -> Machine:
    """A GPU where there is one."""
    return machine_of("auto")


@cache
def ceilings() -> Ceilings:
    """Of this process."""
    return measure(machine(), curve=False)


@cache
def rows(case: Case) -> dict[str, Row]:
    """By implementation; all of a case run in the same rounds, once."""
    return {row["implementation"]: row for row in run_case(case, machine(), ceilings(), _names(case))}


def _names(case: Case) -> list[str]:
    """What is compiled first is run on a GPU alone, for the cases that the goals are about."""
    slow = not machine().on_gpu or case not in default_cases(machine())[:FIRST_CASES]
    return [name for name, one in KERNELS[case.kernel].implementations.items() if not (slow and one.compiles)]


def pairs(kernel: str) -> list[tuple[Case, str]]:
    """Each case of a kernel with each implementation."""
    return [(case, name) for case in default_cases(machine()) if case.kernel == kernel for name in _names(case)]


def names(pair: list[tuple[Case, str]]) -> list[str]:
    """Ids of tests."""
    return [f"{case.label} {name}" for case, name in pair]


def replay(benchmark: Any, case: Case, name: str) -> str | None:
    """Give a benchmark fixture, whose timer is CLOCK, the rounds of an implementation.

    Returns:
        Why it was not measured, or None.
    """
    row = rows(case)[name]
    if row["state"] != "measured":
        return f"{row['state']}: {row['reason']}"
    seconds = iter((row["device_seconds"] or row["call_seconds"])["rounds"])
    benchmark.extra_info.update({key: row[key] for key in (*_KEPT, *_CONTEXT)})
    benchmark.pedantic(lambda: CLOCK.advance(next(seconds)), rounds=len(row["call_seconds"]["rounds"]), iterations=1)
    return None
