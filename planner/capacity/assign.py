"""Which workload goes to which machine: an integer program, solved by HiGHS (Huangfu and Hall 2018) through SciPy.

Variables: y[w, m] = 1 where workload w is on machine m, and n[m, g] machines of type m in group of months g. Replicas and
runs take 1, 2, 4 ... cards, each size dividing the next, so so many machines suffice exactly when for every size s

    sum over sizes t >= s of (t / s) slots_t  <=  n floor(cards / s)

(first fit decreasing is then optimal: Coffman, Garey and Johnson 1987, Bin packing with divisible item sizes). Rented
machines for training are paid for the hours of a run and need no n; elsewhere its shares of a month are rounded up to whole
slots of each size. Each group of months counts with its least demand, and deadlines only by the choice of the run, so the
bound of the program is a lower bound of any plan's cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuneplan.planner.capacity.demand import Demand, Need, busy_gpu_hours, factor, slots
from tuneplan.planner.capacity.machines import FIXED, MachineType
from tuneplan.planner.capacity.schema import Training, Workloads
from tuneplan.planner.errors import InputError

FEWEST_GROUPS = 4
MOST_CELLS = 20_000
"""Workloads x machines x groups up to which every month is a group of its own; beyond, FEWEST_GROUPS are used."""
GAP = 0.005
"""Relative gap at which the solver stops."""
INFEASIBLE = 2
"""HiGHS's status, as SciPy reports it, where no assignment keeps all limits."""
MOST_SECONDS = 30.0
"""Time after which it stops with the best plan found; the gap is then reported."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A machine for every workload that some machine of the option can take.

    Attributes:
        machine: position in the market by position of the workload.
        lower_bound: dollars that no plan of the option can go below; None where the solver gave none.
    """

    machine: dict[int, int]
    lower_bound: float | None


def groups(workloads: Workloads, demands: Sequence[Demand], pairs: int) -> list[list[int]]:
    """Months in groups of neighbours: each its own where that is not too much, one group where nothing changes."""
    months = list(range(1, workloads.horizon + 1))
    shapes = {tuple(factor(workloads, demand.workload, month) for demand in demands) for month in months}
    count = min(max(FEWEST_GROUPS, MOST_CELLS // max(1, pairs)), len(shapes), len(months))
    size = -(-len(months) // count)
    return [months[i : i + size] for i in range(0, len(months), size)]


def training_rent(demand: Demand, need: Need, machine: MachineType, amount: float) -> float:
    """Dollars of a month for runs that rent their machine by the hour."""
    assert isinstance(demand.workload, Training)
    return demand.workload.runs * amount * need.hours * machine.usd_per_hour


def rents_by_the_hour(demand: Demand, machine: MachineType) -> bool:
    """Whether a workload rents a machine of its own for the hours it runs."""
    return demand.kind == "training" and machine.kind not in FIXED


def assign(
    workloads: Workloads, demands: Sequence[Demand], machines: Sequence[MachineType], allowed: set[int]
) -> Assignment | None:
    """The cheapest assignment within the gap; None where limits on the number of machines leave no plan.

    Args:
        workloads: the file.
        demands: of all workloads.
        machines: the market.
        allowed: positions of machines that the option may use.

    Raises:
        InputError: SciPy is not installed, or the solver ran out of time without any plan.
    """
    try:
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array
    except ImportError:
        raise InputError("plan capacity needs SciPy's solver; install the extra: pip install 'tuneplan[capacity]'") from None
    program = _Program(workloads, demands, machines, allowed)
    if not program.pairs:
        return Assignment({}, 0.0)
    shape = (len(program.low), len(program.cost))
    matrix = csr_array((program.values, (program.rows, program.columns)), shape=shape)
    bounds = Bounds(np.zeros(len(program.cost)), np.array(program.upper))
    result: Any = milp(
        np.array(program.cost),
        integrality=np.ones(len(program.cost)),
        bounds=bounds,
        constraints=LinearConstraint(matrix, np.array(program.low), np.array(program.high)),
        options={"mip_rel_gap": GAP, "time_limit": MOST_SECONDS},
    )
    if result.x is None and result.status == INFEASIBLE:
        return None
    if result.x is None:
        raise InputError(f"the solver found no plan within {MOST_SECONDS:.0f} s; give workloads that are alike once, with count")
    best: dict[int, tuple[float, int]] = {}
    for column, (workload, machine) in enumerate(program.pairs):
        taken = float(result.x[column])
        best[workload] = max(best.get(workload, (0.0, machine)), (taken, machine))
    bound = getattr(result, "mip_dual_bound", None)
    return Assignment({workload: machine for workload, (_, machine) in best.items()}, None if bound is None else float(bound))


class _Program:
    """The program in coordinates: cost, bounds, and rows of coefficients."""

    def __init__(
        self, workloads: Workloads, demands: Sequence[Demand], machines: Sequence[MachineType], allowed: set[int]
    ) -> None:
        self.rows: list[int] = []
        self.columns: list[int] = []
        self.values: list[float] = []
        self.low: list[float] = []
        self.high: list[float] = []
        self.cost: list[float] = []
        self.upper: list[float] = []
        self.pairs = [(w, m) for w, demand in enumerate(demands) for m in demand.needs if m in allowed]
        self._workloads, self._demands, self._machines = workloads, demands, machines
        self._groups = groups(workloads, demands, len(self.pairs))
        self._assign_each()
        self._provide_machines(sorted(allowed))

    def _row(self, terms: Sequence[tuple[int, float]], low: float, high: float) -> None:
        row = len(self.low)
        for column, value in terms:
            self.rows.append(row)
            self.columns.append(column)
            self.values.append(value)
        self.low.append(low)
        self.high.append(high)

    def _assign_each(self) -> None:
        """One machine for each workload; the cost of runs rented by the hour, and of power where cards are one's own."""
        by_workload: dict[int, list[tuple[int, float]]] = {}
        for column, (w, m) in enumerate(self.pairs):
            demand, machine = self._demands[w], self._machines[m]
            need = demand.needs[m]
            total = 0.0
            for month in range(1, self._workloads.horizon + 1):
                amount = factor(self._workloads, demand.workload, month)
                total += busy_gpu_hours(demand, need, amount) * machine.busy_gpu_hour
                if rents_by_the_hour(demand, machine):
                    total += training_rent(demand, need, machine, amount)
            self.cost.append(total)
            self.upper.append(1)
            by_workload.setdefault(w, []).append((column, 1.0))
        for terms in by_workload.values():
            self._row(terms, 1, 1)

    def _provide_machines(self, allowed: Sequence[int]) -> None:
        """Machines for what is on all the time, by group of months; machines paid for the whole time are not given back."""
        headroom = self._workloads.max_utilisation
        for m in allowed:
            machine = self._machines[m]
            users = [
                (column, self._demands[w])
                for column, (w, on) in enumerate(self.pairs)
                if on == m and not rents_by_the_hour(self._demands[w], machine)
            ]
            if not users:
                continue
            previous: int | None = None
            for group in self._groups:
                number = self._machines_of_group(m, machine, users, group, headroom)
                if previous is not None and machine.kind in FIXED:
                    self._row([(number, 1.0), (previous, -1.0)], 0.0, float("inf"))
                previous = number

    def _machines_of_group(
        self, m: int, machine: MachineType, users: Sequence[tuple[int, Demand]], group: Sequence[int], headroom: float
    ) -> int:
        """The variable of so many machines, and for each size one of whole slots for training."""
        number = self._variable(machine.monthly * len(group), float("inf") if machine.most is None else machine.most)
        whole: list[tuple[int, int, float]] = []
        shared: dict[int, list[tuple[int, float]]] = {}
        for column, demand in users:
            need = demand.needs[m]
            count = min(slots(demand, need, factor(self._workloads, demand.workload, month), headroom) for month in group)
            if count and demand.kind == "training":
                shared.setdefault(need.gpus, []).append((column, count))
            elif count:
                whole.append((column, need.gpus, count))
        for size, terms in shared.items():
            slot = self._variable(0.0, float("inf"))
            self._row([*terms, (slot, -1.0)], -float("inf"), 0.0)
            whole.append((slot, size, 1.0))
        for size in {size for _, size, _ in whole}:
            terms = [(column, gpus / size * count) for column, gpus, count in whole if gpus >= size]
            self._row([*terms, (number, -float(machine.gpu_count // size))], -float("inf"), 0.0)
        return number

    def _variable(self, cost: float, upper: float) -> int:
        self.cost.append(cost)
        self.upper.append(upper)
        return len(self.cost) - 1
