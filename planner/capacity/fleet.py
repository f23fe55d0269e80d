"""From an assignment to machines, money and use, month by month."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

from tuneplan.planner.capacity.assign import rents_by_the_hour, training_rent
from tuneplan.planner.capacity.demand import Demand, busy_gpu_hours, factor, slots
from tuneplan.planner.capacity.machines import BUY, FIXED, MachineType
from tuneplan.planner.capacity.quantities import HOURS_PER_MONTH
from tuneplan.planner.capacity.schema import Workloads

MOST_GROWTH = 10.0
PARTS = ("rent", "reserved", "depreciation", "overhead", "power")


@dataclass(frozen=True, slots=True)
class Scaling:
    """What is tried: factors on prices and on demand, 1 as the file has them."""

    rent: float = 1.0
    reserved: float = 1.0
    depreciation: float = 1.0
    power: float = 1.0
    demand: float = 1.0


PLAIN = Scaling()


@dataclass(slots=True)
class Month:
    """One month of an option.

    Attributes:
        number: from 1.
        machines: that are on all month, by position in the market.
        hours: of machines rented by the hour, by position in the market.
        usd: dollars by part of PARTS.
        cash: dollars that leave the bank: purchases instead of depreciation.
        gpu_hours: paid for, or owned.
        busy_gpu_hours: in which cards work.
        peak_gpus: cards taken at the busiest time by what is on all month.
    """

    number: int
    machines: dict[int, int] = field(default_factory=dict)
    hours: dict[int, float] = field(default_factory=dict)
    usd: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    cash: float = 0.0
    gpu_hours: float = 0.0
    busy_gpu_hours: float = 0.0
    peak_gpus: float = 0.0

    @property
    def total(self) -> float:
        """Dollars, with depreciation."""
        return sum(self.usd.values())

    @property
    def utilisation(self) -> float:
        """Share of the paid GPU-hours in which cards work."""
        return min(1.0, self.busy_gpu_hours / self.gpu_hours) if self.gpu_hours else 0.0


def machines_for(taken: dict[int, float], gpu_count: int) -> int:
    """Machines that hold so many slots of each size; sizes divide each other (see `assign`), shares of a slot are rounded up."""
    whole = {size: ceil(count - 1e-9) for size, count in taken.items()}
    needed = 0
    for size in whole:
        units = sum(other // size * count for other, count in whole.items() if other >= size)
        needed = max(needed, -(-units // (gpu_count // size)))
    return needed


def slots_taken(
    workloads: Workloads,
    demands: Sequence[Demand],
    machine: dict[int, int],
    machines: Sequence[MachineType],
    month: int,
    demand: float,
) -> dict[int, dict[int, float]]:
    """Slots by machine and size in a month, of all that is on a machine all the time; training as shares of a slot."""
    taken: dict[int, dict[int, float]] = {}
    for w, m in machine.items():
        if rents_by_the_hour(demands[w], machines[m]):
            continue
        need = demands[w].needs[m]
        count = slots(demands[w], need, factor(workloads, demands[w].workload, month) * demand, workloads.max_utilisation)
        if count:
            sizes = taken.setdefault(m, {})
            sizes[need.gpus] = sizes.get(need.gpus, 0.0) + count
    return taken


def project(
    workloads: Workloads,
    demands: Sequence[Demand],
    machine: dict[int, int],
    machines: Sequence[MachineType],
    extra: dict[int, int],
    scaling: Scaling = PLAIN,
) -> list[Month]:
    """Every month of the horizon.

    Args:
        workloads: the file.
        demands: of all workloads.
        machine: of each workload.
        machines: the market.
        extra: machines beyond what the hours need, so that every run of the schedule meets its deadline.
        scaling: what is tried.
    """
    months: list[Month] = []
    fixed: dict[int, int] = {}
    bought: dict[int, dict[int, int]] = {}
    for number in range(1, workloads.horizon + 1):
        month = Month(number)
        for m, taken in slots_taken(workloads, demands, machine, machines, number, scaling.demand).items():
            needed = machines_for(taken, machines[m].gpu_count) + extra.get(m, 0)
            month.peak_gpus += sum(size * count for size, count in taken.items())
            if machines[m].kind in FIXED:
                _grow(fixed, bought, m, needed, number)
            else:
                month.machines[m] = needed
        month.machines.update(fixed)
        _rent_by_the_hour(month, workloads, demands, machine, machines, scaling)
        _pay(month, machines, bought, scaling)
        _work(month, workloads, demands, machine, machines, scaling)
        months.append(month)
    return months


def _grow(fixed: dict[int, int], bought: dict[int, dict[int, int]], m: int, needed: int, number: int) -> None:
    """Machines that stay once they are there; how many were bought in which month is kept."""
    more = needed - fixed.get(m, 0)
    if more > 0:
        fixed[m] = needed
        bought.setdefault(m, {})[number] = more


def _rent_by_the_hour(
    month: Month,
    workloads: Workloads,
    demands: Sequence[Demand],
    machine: dict[int, int],
    machines: Sequence[MachineType],
    scaling: Scaling,
) -> None:
    for w, m in machine.items():
        if rents_by_the_hour(demands[w], machines[m]):
            amount = factor(workloads, demands[w].workload, month.number) * scaling.demand
            usd = training_rent(demands[w], demands[w].needs[m], machines[m], amount)
            hours = usd / machines[m].usd_per_hour if machines[m].usd_per_hour else 0.0
            month.hours[m] = month.hours.get(m, 0.0) + hours
            month.usd["rent"] += usd * scaling.rent
            month.gpu_hours += hours * machines[m].gpu_count


def _pay(month: Month, machines: Sequence[MachineType], bought: dict[int, dict[int, int]], scaling: Scaling) -> None:
    """What machines cost that are on all month."""
    for m, count in month.machines.items():
        kind = machines[m]
        hire = kind.usd_per_hour * HOURS_PER_MONTH * count
        if kind.kind in FIXED:
            month.usd["reserved"] += hire * scaling.reserved
        else:
            month.usd["rent"] += hire * scaling.rent
        month.usd["depreciation"] += kind.depreciation * count * scaling.depreciation
        month.usd["overhead"] += kind.overhead * count * scaling.power
        month.gpu_hours += count * kind.gpu_count * HOURS_PER_MONTH
        if kind.kind == BUY:
            for start, number in bought.get(m, {}).items():
                age = month.number - start
                if age % kind.lifetime == 0:
                    price = 1.0 if age == 0 else 1.0 - kind.residual
                    month.cash += number * kind.purchase * scaling.depreciation * price


def _work(
    month: Month,
    workloads: Workloads,
    demands: Sequence[Demand],
    machine: dict[int, int],
    machines: Sequence[MachineType],
    scaling: Scaling,
) -> None:
    """GPU-hours of work, and their power where cards are one's own."""
    for w, m in machine.items():
        amount = factor(workloads, demands[w].workload, month.number) * scaling.demand
        busy = busy_gpu_hours(demands[w], demands[w].needs[m], amount)
        month.busy_gpu_hours += busy
        month.usd["power"] += busy * machines[m].busy_gpu_hour * scaling.power
    month.cash += month.total - month.usd["depreciation"]


def headroom(
    workloads: Workloads, demands: Sequence[Demand], machine: dict[int, int], machines: Sequence[MachineType], last: Month
) -> float | None:
    """The share by which demand can grow beyond the last month's before its machines are too few; at most nine times.

    None where nothing is on all month. Beyond it, `max_utilisation` is already kept free.
    """
    if not last.machines:
        return None

    def enough(demand: float) -> bool:
        taken = slots_taken(workloads, demands, machine, machines, last.number, demand)
        return all(machines_for(sizes, machines[m].gpu_count) <= last.machines.get(m, 0) for m, sizes in taken.items())

    low, high = 1.0, MOST_GROWTH
    if not enough(low):
        return 0.0
    while high - low > 0.005:
        middle = (low + high) / 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return low - 1
