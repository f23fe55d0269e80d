"""Cases one after another within a time, rows written as they come; cases that have rows are not run again."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tuneplan.kernels.bench.cases import Case
from tuneplan.kernels.bench.ceilings import Ceilings
from tuneplan.kernels.bench.clocks import free
from tuneplan.kernels.bench.machine import Machine
from tuneplan.kernels.bench.registry import KERNELS
from tuneplan.kernels.bench.rounds import ROUNDS
from tuneplan.kernels.bench.rows import FAILED, Row, append, bench_key, row, settled
from tuneplan.kernels.bench.run import run_case


class Budget:
    """Seconds that may be spent: nothing is begun that may end too late, judged by the longest like it so far."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds
        self._longest: dict[str, float] = {}

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self._end - self._clock()

    def allows(self, kind: str, expected: float = 0.0) -> bool:
        """Whether one more of a kind may begin; `expected` seconds where none was run yet."""
        return self.left > max(self._longest.get(kind, expected), 0.0)

    def spend(self, kind: str, run: Callable[[], list[Row]]) -> list[Row]:
        """Run it, and remember how long that took."""
        begun = self._clock()
        try:
            return run()
        finally:
            self._longest[kind] = max(self._longest.get(kind, 0.0), self._clock() - begun)


@dataclass(slots=True)
class Session:
    """What a session did.

    Args:
        rows: of the cases that were run.
        left: cases that the time did not reach.
        done_before: cases that had rows already.
    """

    rows: list[Row] = field(default_factory=list)
    left: list[Case] = field(default_factory=list)
    done_before: int = 0


def names_of(case: Case, wanted: Sequence[str] | None) -> list[str]:
    """The implementations of a case's kernel that are wanted."""
    return [name for name in KERNELS[case.kernel].implementations if wanted is None or name in wanted]


def needed(case: Case, machine: Machine, names: Sequence[str] | None, done: Sequence[Row]) -> bool:
    """Whether a wanted implementation has no result, and could have one here; without any rows its reasons are wanted too."""
    known = {one["key"] for one in done if one["kind"] == "bench"}
    implementations = KERNELS[case.kernel].implementations
    for name in names_of(case, names):
        key = bench_key(case, name)
        can = implementations[name].missing(case, machine.device) is None
        if key not in known or (can and not settled(done, "bench", key)):
            return True
    return False


def run_cases(
    cases: Sequence[Case],
    machine: Machine,
    ceilings: Ceilings,
    budget: Budget,
    *,
    names: Sequence[str] | None = None,
    rounds: int = ROUNDS,
    done: Sequence[Row] = (),
    file: Path | None = None,
    told: Callable[[Case, list[Row]], None] = lambda case, rows: None,
) -> Session:
    """Run cases until the time is over.

    Args:
        cases: in the order in which they matter.
        machine: where.
        ceilings: of this process.
        budget: how long.
        names: implementations that are wanted; None for all.
        rounds: interleaved rounds of each.
        done: rows that exist.
        file: rows are appended to, or None.
        told: hears of each case that was run.
    """
    session = Session()
    for case in cases:
        if not needed(case, machine, names, done):
            session.done_before += 1
            continue
        if not budget.allows(case.kernel):
            session.left.append(case)
            continue
        rows = budget.spend(case.kernel, partial(_tried, case, machine, ceilings, names, rounds))
        session.rows += rows
        if file is not None:
            append(file, rows)
        told(case, rows)
    return session


def _tried(case: Case, machine: Machine, ceilings: Ceilings, names: Sequence[str] | None, rounds: int) -> list[Row]:
    """The rows of a case; where it cannot even be set up (its inputs do not fit into the memory), rows that say so."""
    try:
        return run_case(case, machine, ceilings, names, rounds)
    except RuntimeError as error:
        free(machine.device)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        same = {"kernel": case.kernel, "case": case.as_json(), "state": FAILED, "reason": reason}
        return [
            row("bench", bench_key(case, name), machine.provenance, implementation=name, **same) for name in names_of(case, names)
        ]
