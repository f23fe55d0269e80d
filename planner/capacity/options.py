"""Renting on demand, spot, reserving, buying, or a mixture: each with its cost over the horizon, and which to take."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from tuneplan.hardware_profiles.loader import Offer
from tuneplan.planner.capacity.assign import assign
from tuneplan.planner.capacity.demand import Demand, demands, most, slots
from tuneplan.planner.capacity.fleet import Month, Scaling, headroom, project
from tuneplan.planner.capacity.machines import BUY, KINDS, MIXED, ON_DEMAND, RESERVED, SPOT, MachineType, Market, market
from tuneplan.planner.capacity.schedule import Schedule, schedule
from tuneplan.planner.capacity.schema import Workloads
from tuneplan.planner.capacity.training_fit import OF_FAMILIES, Models
from tuneplan.planner.yaml_file import YamlFile

SWING = 0.2
"""By how much a price or the demand is moved to see what depends on it."""
LOW, HIGH = 1 - SWING, 1 + SWING
TRIALS: dict[str, tuple[Scaling, Scaling]] = {
    "rent": (Scaling(rent=LOW), Scaling(rent=HIGH)),
    "reserved price": (Scaling(reserved=LOW), Scaling(reserved=HIGH)),
    "purchase price": (Scaling(depreciation=LOW), Scaling(depreciation=HIGH)),
    "electricity and hosting": (Scaling(power=LOW), Scaling(power=HIGH)),
    "utilisation": (Scaling(demand=LOW), Scaling(demand=HIGH)),
}
_ALLOWED = {
    ON_DEMAND: (ON_DEMAND,),
    SPOT: (SPOT, ON_DEMAND),
    RESERVED: (RESERVED,),
    BUY: (BUY,),
    MIXED: (ON_DEMAND, SPOT, RESERVED, BUY),
}


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What an option costs when one thing moves by SWING down and up."""

    what: str
    low_usd: float
    high_usd: float


@dataclass(frozen=True, slots=True)
class Option:
    """One way to get the machines.

    Attributes:
        kind: one of KINDS.
        machine: position in the market by position of the workload.
        months: of the horizon.
        schedule: of training on machines that are paid for anyway.
        lower_bound: dollars that no plan of this kind goes below.
        binding: what limits the dearest machine.
        break_even_month: first month in which the money spent so far is no more than on demand; None if never.
        sensitivities: one for each of TRIALS that changes something.
        unplaced: positions of workloads that no machine of this kind takes.
        headroom: by how much all demand can still grow before the machines of the last month are too few, as a share;
            None where all is rented by the hour.
    """

    kind: str
    machine: dict[int, int]
    months: tuple[Month, ...]
    schedule: Schedule
    lower_bound: float | None
    binding: str
    break_even_month: int | None
    sensitivities: tuple[Sensitivity, ...]
    unplaced: tuple[int, ...]
    headroom: float | None

    @property
    def total(self) -> float:
        """Dollars over the horizon, with depreciation instead of purchases."""
        return sum(month.total for month in self.months)

    @property
    def cash(self) -> float:
        """Dollars that leave the bank in the horizon."""
        return sum(month.cash for month in self.months)

    @property
    def utilisation(self) -> float:
        """Share of the paid GPU-hours in which cards work."""
        paid = sum(month.gpu_hours for month in self.months)
        return min(1.0, sum(month.busy_gpu_hours for month in self.months) / paid) if paid else 0.0

    @property
    def complete(self) -> bool:
        """Whether every workload that some machine can take is placed."""
        return not self.unplaced


@dataclass(frozen=True, slots=True)
class CapacityAnswer:
    """Everything about a workloads file."""

    workloads: Workloads
    file: YamlFile
    market: Market
    demands: tuple[Demand, ...]
    options: tuple[Option, ...]
    recommended: Option | None
    notes: tuple[str, ...]

    @property
    def turning_points(self) -> tuple[tuple[str, str, str], ...]:
        """What would change the recommendation: what moves, which way, and the kind that is then cheapest."""
        if self.recommended is None:
            return ()
        complete = [option for option in self.options if option.complete]
        found = []
        for what in TRIALS:
            for index, way in enumerate((f"-{SWING:.0%}", f"+{SWING:.0%}")):
                best = min(complete, key=lambda option: _moved(option, what, index))
                if best is not self.recommended and _moved(best, what, index) < _moved(self.recommended, what, index) - 0.005:
                    found.append((what, way, best.kind))
        return tuple(found)

    @property
    def unserved(self) -> tuple[Demand, ...]:
        """Workloads that no listed machine can take."""
        return tuple(demand for demand in self.demands if not demand.needs)


def plan_capacity(
    workloads: Workloads, file: YamlFile, today: date, extra: Sequence[Offer] = (), models: Models = OF_FAMILIES
) -> CapacityAnswer:
    """Every kind of option, the cheapest complete one first.

    Args:
        workloads: the checked file.
        file: for the lines of messages.
        today: for the age of prices.
        extra: the user's own prices.
        models: how those that are trained are read.

    Raises:
        InputError: a model or method that cannot be used, with its line; SciPy is not installed.
    """
    found = market(workloads.hardware, today, extra)
    needs = demands(workloads, file, found.machines, today, models)
    notes = list(found.notes)
    options: list[Option] = []
    reference: Option | None = None
    for kind in KINDS:
        allowed = {i for i, machine in enumerate(found.machines) if machine.kind in _ALLOWED[kind]}
        kinds = {found.machines[i].kind for i in allowed}
        if (kind not in kinds and kind != MIXED) or (kind == MIXED and len(kinds) < 2):
            continue
        option = _option(kind, workloads, needs, found.machines, allowed, reference)
        if option is None:
            notes.append(f"no option {kind.replace('_', ' ')}: the machines allowed by `max` do not hold the workloads")
            continue
        if kind == SPOT and not any(found.machines[m].kind == SPOT for m in option.machine.values()):
            notes.append("no option spot: no workload that may be interrupted is cheaper there")
            continue
        if not option.machine:
            continue
        if kind == ON_DEMAND and option.complete:
            reference = option
        options.append(option)
    options.sort(key=lambda option: (not option.complete, len(option.unplaced), option.total))
    best = options[0] if options and options[0].complete else None
    return CapacityAnswer(workloads, file, found, tuple(needs), tuple(options), best, tuple(notes))


def _option(
    kind: str,
    workloads: Workloads,
    needs: Sequence[Demand],
    machines: Sequence[MachineType],
    allowed: set[int],
    reference: Option | None,
) -> Option | None:
    found = assign(workloads, needs, machines, allowed)
    if found is None:
        return None
    plan = schedule(workloads, needs, found.machine, machines)
    months = project(workloads, needs, found.machine, machines, plan.extra)
    trials = []
    base = sum(month.total for month in months)
    for what, (low, high) in TRIALS.items():
        ends = [sum(m.total for m in project(workloads, needs, found.machine, machines, plan.extra, s)) for s in (low, high)]
        if any(abs(end - base) > 0.005 for end in ends):
            trials.append(Sensitivity(what, *ends))
    return Option(
        kind,
        found.machine,
        tuple(months),
        plan,
        found.lower_bound,
        _binding(workloads, needs, found.machine, machines, months),
        _break_even(months, reference) if kind != ON_DEMAND else None,
        tuple(trials),
        tuple(w for w, demand in enumerate(needs) if demand.needs and w not in found.machine),
        headroom(workloads, needs, found.machine, machines, months[-1]),
    )


def _break_even(months: Sequence[Month], reference: Option | None) -> int | None:
    """First month by whose end no more was spent than on demand, and from which that stays so."""
    if reference is None:
        return None
    ahead = 0.0
    first: int | None = None
    for own, other in zip(months, reference.months, strict=True):
        ahead += other.cash - own.cash
        if ahead < -0.005:
            first = None
        elif first is None:
            first = own.number
    return first


def _binding(
    workloads: Workloads,
    needs: Sequence[Demand],
    machine: dict[int, int],
    machines: Sequence[MachineType],
    months: Sequence[Month],
) -> str:
    """What decided the number of the machines that cost most: the limit of the workload that takes most of them."""
    if not machine:
        return "nothing is placed"
    spent: dict[int, float] = {}
    for month in months:
        for m, count in month.machines.items():
            spent[m] = spent.get(m, 0.0) + count * machines[m].monthly
        for m, hours in month.hours.items():
            spent[m] = spent.get(m, 0.0) + hours * machines[m].usd_per_hour
    dearest = max(spent, key=lambda m: (spent[m], -m)) if spent else min(machine.values())
    users = [w for w, m in machine.items() if m == dearest]
    largest = max(users, key=lambda w: (_weight(needs[w], dearest), -w))
    demand = needs[largest]
    if demand.kind == "serving" and demand.idle(dearest, most(workloads, demand.workload), workloads.max_utilisation):
        cards = demand.needs[dearest].gpus
        return f"smallest replica: {cards} GPUs for {demand.workload.name} on {machines[dearest].label}, whatever its load"
    return f"{demand.needs[dearest].binding} ({demand.workload.name} on {machines[dearest].label})"


def _moved(option: Option, what: str, end: int) -> float:
    """An option's cost when something moves down (0) or up (1)."""
    trial = next((s for s in option.sensitivities if s.what == what), None)
    return option.total if trial is None else (trial.low_usd, trial.high_usd)[end]


def _weight(demand: Demand, m: int) -> float:
    need = demand.needs[m]
    return need.gpus * slots(demand, need, float(demand.workload.count), 1.0)
