"""A month's schedule of training runs on machines that are paid for anyway: earliest deadline first, without interruption.

Graham 1969 for list scheduling; with deadlines far apart it is close to the bound of the hours. A run that would be late is
a reason for one machine more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import ceil

from tuneplan.planner.capacity.assign import rents_by_the_hour
from tuneplan.planner.capacity.demand import Demand, factor, slots
from tuneplan.planner.capacity.fleet import machines_for, slots_taken
from tuneplan.planner.capacity.machines import MachineType
from tuneplan.planner.capacity.quantities import HOURS_PER_MONTH
from tuneplan.planner.capacity.schema import Training, Workloads
from tuneplan.planner.units import SECONDS_PER_HOUR

MOST_RUNS = 20_000
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class ScheduledRun:
    """One run: where and when, in hours from the start of the month."""

    workload: str
    machine: str
    slot: int
    gpus: int
    released: float
    start: float
    end: float
    deadline: float | None

    @property
    def late_hours(self) -> float:
        """By how much it misses its deadline; 0 if it does not."""
        return 0.0 if self.deadline is None else max(0.0, self.end - self.deadline - ROUNDING)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The busiest month.

    Attributes:
        month: its number.
        runs: by start.
        extra: machines beyond what the hours need, by position in the market.
        lower_bound_hours: before which no order of the runs can end: work over slots, or a release and its run.
        makespan_hours: end of the last run.
        left_out: runs beyond MOST_RUNS, which were not placed.
    """

    month: int
    runs: tuple[ScheduledRun, ...]
    extra: dict[int, int]
    lower_bound_hours: float
    makespan_hours: float
    left_out: int


def schedule(
    workloads: Workloads, demands: Sequence[Demand], machine: dict[int, int], machines: Sequence[MachineType]
) -> Schedule:
    """Place the runs of the busiest month."""
    month = _busiest(workloads, demands, machine)
    taken = slots_taken(workloads, demands, machine, machines, month, 1.0)
    jobs: dict[tuple[int, int], list[tuple[float, float, float, float, str]]] = {}
    shares: dict[tuple[int, int], float] = {}
    headroom = workloads.max_utilisation
    left_out = placed = 0
    for w, m in machine.items():
        demand = demands[w]
        job = demand.workload
        if not isinstance(job, Training) or rents_by_the_hour(demand, machines[m]):
            continue
        need = demand.needs[m]
        count = ceil(job.runs * factor(workloads, job, month) - 1e-9)
        if placed + count > MOST_RUNS:
            left_out += count
            continue
        placed += count
        due = float("inf") if job.deadline is None else job.deadline / SECONDS_PER_HOUR
        every = HOURS_PER_MONTH / count if count else 0.0
        shares[m, need.gpus] = shares.get((m, need.gpus), 0.0) + slots(demand, need, factor(workloads, job, month), headroom)
        runs = jobs.setdefault((m, need.gpus), [])
        runs += [(k * every, k * every + due, need.hours, due, job.name) for k in range(count)]
    found: list[ScheduledRun] = []
    extra: dict[int, int] = {}
    bound = 0.0
    for (m, size), runs in sorted(jobs.items()):
        first = max(1, ceil(shares[m, size] - 1e-9))
        best = in_time(runs, first, machines[m].label, size)
        tried = max(first, 1 + max(run.slot for run in best))
        before = machines_for(taken[m], machines[m].gpu_count)
        taken[m] = {**taken[m], size: ceil(taken[m][size] - 1e-9) + tried - first}
        extra[m] = extra.get(m, 0) + machines_for(taken[m], machines[m].gpu_count) - before
        work = sum(hours for _, _, hours, _, _ in runs)
        bound = max(bound, work / tried, *(released + hours for released, _, hours, _, _ in runs))
        found += best
    found.sort(key=lambda run: (run.start, run.workload))
    end = max((run.end for run in found), default=0.0)
    return Schedule(month, tuple(found), {m: n for m, n in extra.items() if n}, bound, end, left_out)


def _busiest(workloads: Workloads, demands: Sequence[Demand], machine: dict[int, int]) -> int:
    """The month with most GPU-hours of training."""

    def load(month: int) -> float:
        total = 0.0
        for w, m in machine.items():
            job = demands[w].workload
            if isinstance(job, Training):
                total += job.runs * factor(workloads, job, month) * demands[w].needs[m].hours * demands[w].needs[m].gpus
        return total

    return max(range(1, workloads.horizon + 1), key=lambda month: (load(month), -month))


def in_time(runs: list[tuple[float, float, float, float, str]], slots: int, label: str, size: int) -> list[ScheduledRun]:
    """The runs on as few slots as keep every deadline, found by doubling and halving; a slot for each run is always enough."""
    low, high = slots, slots
    best = _place(runs, high, label, size)
    while any(run.late_hours for run in best) and high < len(runs):
        low, high = high, min(2 * high, len(runs))
        best = _place(runs, high, label, size)
    while high - low > 1:
        middle = (low + high) // 2
        placed = _place(runs, middle, label, size)
        if any(run.late_hours for run in placed):
            low = middle
        else:
            high, best = middle, placed
    return best


def _place(runs: list[tuple[float, float, float, float, str]], slots: int, label: str, size: int) -> list[ScheduledRun]:
    """Earliest deadline first among the runs that are released when a slot becomes free."""
    waiting = sorted(runs)
    free = [(0.0, slot) for slot in range(slots)]
    heapify(free)
    ready: list[tuple[float, float, float, float, str]] = []
    placed: list[ScheduledRun] = []
    index = 0
    while index < len(waiting) or ready:
        now, slot = heappop(free)
        if not ready and index < len(waiting):
            now = max(now, waiting[index][0])
        while index < len(waiting) and waiting[index][0] <= now:
            released, due, hours, limit, name = waiting[index]
            heappush(ready, (due, released, hours, limit, name))
            index += 1
        due, released, hours, limit, name = heappop(ready)
        start = max(now, released)
        end = start + hours
        placed.append(ScheduledRun(name, label, slot, size, released, start, end, None if limit == float("inf") else due))
        heappush(free, (end, slot))
    return placed
