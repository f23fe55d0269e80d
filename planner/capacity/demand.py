"""What every workload asks of every machine, month by month."""

from dataclasses import dataclass
from datetime import date
from math import ceil

from tuneplan.planner.capacity.machines import FIXED, SPOT, MachineType
from tuneplan.planner.capacity.quantities import HOURS_PER_MONTH
from tuneplan.planner.capacity.read import at_line
from tuneplan.planner.capacity.schema import Serving, Training, Workload, Workloads
from tuneplan.planner.capacity.serving_fit import Replica, ServingFits
from tuneplan.planner.capacity.training_fit import OF_FAMILIES, Models, TrainingFits
from tuneplan.planner.errors import InputError
from tuneplan.planner.yaml_file import Path, YamlFile


@dataclass(frozen=True, slots=True)
class Need:
    """What a workload takes of one machine.

    Attributes:
        gpus: cards of a replica or a run.
        hours: of a run; 0 for serving.
        rate: requests a second of a replica within all limits; 0 for training.
        detail: method, or batch.
        binding: what decided the number of cards.
    """

    gpus: int
    hours: float
    rate: float
    detail: str
    binding: str


@dataclass(frozen=True, slots=True)
class Demand:
    """A workload with its needs.

    Attributes:
        workload: as the file has it.
        path: where it stands in the file.
        needs: by position of the machine in the market; machines that cannot take it are absent.
        reason: why none can; empty if some can.
    """

    workload: Workload
    path: Path
    needs: dict[int, Need]
    reason: str

    @property
    def kind(self) -> str:
        """Either training or serving."""
        return "training" if isinstance(self.workload, Training) else "serving"

    def idle(self, machine: int, amount: float, headroom: float) -> bool:
        """Whether the least number of replicas is enough for the peak. `amount`: from `factor`."""
        load = self.workload
        return isinstance(load, Serving) and _replicas(load, self.needs[machine].rate, amount, headroom) == load.min_replicas


def demands(
    workloads: Workloads, file: YamlFile, machines: tuple[MachineType, ...], today: date, models: Models = OF_FAMILIES
) -> list[Demand]:
    """Needs of all workloads. Raises InputError, with the line, for a model or a method that cannot be used."""
    training, serving = TrainingFits(machines, today, models), ServingFits()
    found: list[Demand] = []
    for index, job in enumerate(workloads.training):
        path: Path = ("training", index)
        try:
            found.append(_training(job, path, machines, training))
        except InputError as error:
            raise at_line(file, path, error) from None
    for index, load in enumerate(workloads.serving):
        path = ("serving", index)
        try:
            busiest = most(workloads, load)
            found.append(_serving(load, path, machines, serving, busiest, workloads.max_utilisation))
        except InputError as error:
            raise at_line(file, path, error) from None
    return found


def _allowed(workload: Workload, machine: MachineType) -> bool:
    if machine.kind == SPOT and not (isinstance(workload, Training) and workload.interruptible):
        return False
    return workload.only_on is None or machine.label.lower() in {name.lower() for name in workload.only_on}


def _training(job: Training, path: Path, machines: tuple[MachineType, ...], fits: TrainingFits) -> Demand:
    """Rented machines are paid whole, so the fastest run is the cheapest there; on one's own, GPU-hours count."""
    needs: dict[int, Need] = {}
    reasons: dict[str, str] = {}
    for index, machine in enumerate(machines):
        if _allowed(job, machine):
            thrifty, fastest, reason = fits.runs(job, machine)
            run = fastest if machine.kind not in FIXED else thrifty
            if run is None:
                reasons.setdefault(machine.label, reason)
            else:
                needs[index] = Need(run.gpus, run.hours, 0.0, run.detail, run.binding)
    return Demand(job, path, needs, "" if needs else _why(job, reasons))


def _serving(
    load: Serving, path: Path, machines: tuple[MachineType, ...], fits: ServingFits, busiest: float, headroom: float
) -> Demand:
    """`busiest`: the largest factor of the horizon, at which the replicas that need fewest cards are chosen."""
    needs: dict[int, Need] = {}
    reasons: dict[str, str] = {}
    for index, machine in enumerate(machines):
        if _allowed(load, machine):
            replicas, reason = fits.replicas(load, machine)
            if not replicas:
                reasons.setdefault(machine.label, reason)
                continue
            best = min(replicas, key=lambda replica: (_cards(load, replica, busiest, headroom), replica.gpus))
            needs[index] = Need(
                best.gpus, 0.0, best.requests_per_second, f"batch {best.batch} of {best.concurrent} that fit", best.binding
            )
    return Demand(load, path, needs, "" if needs else _why(load, reasons))


def _cards(load: Serving, replica: Replica, amount: float, headroom: float) -> int:
    return replica.gpus * _replicas(load, replica.requests_per_second, amount, headroom)


def _replicas(load: Serving, rate: float, amount: float, headroom: float) -> int:
    """Replicas for the peak of one of the workloads alike."""
    peak = load.peak if load.peak is not None else load.requests
    return max(load.min_replicas, ceil(peak * amount / load.count / (rate * headroom) - 1e-9))


def _why(workload: Workload, reasons: dict[str, str]) -> str:
    if not reasons:
        return "no machine that it may use has a price"
    return "; ".join(f"{label}: {reason}" for label, reason in list(reasons.items())[:4])


def factor(workloads: Workloads, workload: Workload, month: int) -> float:
    """How much of a workload there is in a month, from 1: its count and growth; 0 outside its months."""
    last = workload.last_month if workload.last_month is not None else workloads.horizon
    if not workload.first_month <= month <= last:
        return 0.0
    rate: float = workload.growth if workload.growth is not None else workloads.growth
    return workload.count * (1.0 + rate) ** (month - 1)


def most(workloads: Workloads, workload: Workload) -> float:
    """The largest factor of the horizon."""
    return max(factor(workloads, workload, month) for month in range(1, workloads.horizon + 1))


def slots(demand: Demand, need: Need, amount: float, headroom: float) -> float:
    """Groups of `need.gpus` cards that are taken all month: whole replicas, or a share of the month for training.

    Args:
        demand: the workload.
        need: on one machine.
        amount: from `factor`, times whatever is tried.
        headroom: share of the capacity that is planned for.
    """
    if not amount:
        return 0.0
    workload = demand.workload
    if isinstance(workload, Training):
        return workload.runs * amount * need.hours / (HOURS_PER_MONTH * headroom)
    assert isinstance(workload, Serving)
    return float(_replicas(workload, need.rate, amount, headroom) * workload.count)


def busy_gpu_hours(demand: Demand, need: Need, amount: float) -> float:
    """GPU-hours of a month in which cards work: runs, and for serving the mean rate over what a replica can take."""
    workload = demand.workload
    if isinstance(workload, Training):
        return workload.runs * amount * need.hours * need.gpus
    assert isinstance(workload, Serving)
    return workload.requests * amount / need.rate * need.gpus * HOURS_PER_MONTH
