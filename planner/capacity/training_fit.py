"""How a training job runs on a machine: which method, how many cards, how long. The search of `plan` answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date

from tuneplan.planner.capacity.machines import MachineType
from tuneplan.planner.capacity.schema import CHEAPEST, Training
from tuneplan.planner.job import DEFAULT_METHODS, Job
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.registry import checkpointing_kinds, read_spec, suited
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.plan import Answer
from tuneplan.planner.search import find
from tuneplan.planner.target import Target
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.uncertainty import margin
from tuneplan.planner.units import SECONDS_PER_HOUR, format_gib, format_seconds


@dataclass(frozen=True, slots=True)
class Models:
    """How models are read.

    Attributes:
        read: makes the spec of a model's name and its config.
        ready: what has to be done for a job before it is searched.
    """

    read: Callable[[str, ConfigReader], ModelSpec] = read_spec
    ready: Callable[[Job], Job] = lambda job: job


OF_FAMILIES = Models()
"""Those that a family mirrors, and no others."""


@dataclass(frozen=True, slots=True)
class Step:
    """An update of the global batch on so many cards of a machine."""

    method: str
    gpus: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Steps:
    """Every way to run a kind of job on a machine, or why there is none."""

    steps: tuple[Step, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Run:
    """One way to run a job.

    Attributes:
        gpus: cards, a power of two.
        hours: of one run.
        detail: method.
        binding: what decided it.
    """

    gpus: int
    hours: float
    detail: str
    binding: str


class TrainingFits:
    """Answers for many jobs on some machines; jobs that differ only in tokens, dates or names share a search."""

    def __init__(self, machines: Sequence[MachineType], today: date, models: Models = OF_FAMILIES) -> None:
        self.today = today
        self.models = models
        self.machines = {machine.key: machine for machine in machines}
        self._steps: dict[tuple[str, str, int, int], dict[str, Steps]] = {}

    def steps(self, job: Training, machine: MachineType) -> Steps:
        """Every method and power-of-two number of cards. Raises InputError for a model or a method that cannot be used."""
        key = (job.model, job.method, job.seq_len, job.global_batch_size)
        if key not in self._steps:
            self._steps[key] = self._search(job)
        return self._steps[key][machine.key]

    def _search(self, job: Training) -> dict[str, Steps]:
        """One search over all machines."""
        methods = DEFAULT_METHODS if job.method == CHEAPEST else (job.method,)
        spec = self.models.read(*load(job.model))
        question = Job(
            spec=spec,
            methods=tuple(parse(method) for method in (suited(spec, methods) if job.method == CHEAPEST else methods)),
            targets=tuple(_target(key, machine) for key, machine in self.machines.items()),
            tokens=job.global_batch_size * job.seq_len,
            global_batch_size=job.global_batch_size,
            settings=Settings(seq_len=job.seq_len),
            checkpointing=checkpointing_kinds(spec),
            objective="time",
            safety_margin=margin(),
        )
        answer = find(self.models.ready(question), self.today)
        return {key: _steps(answer, key, machine) for key, machine in self.machines.items()}

    def runs(self, job: Training, machine: MachineType) -> tuple[Run | None, Run | None, str]:
        """The way with the fewest GPU-hours and the fastest, both within the deadline; and why there is none."""
        found = self.steps(job, machine)
        updates = -(-job.tokens // (job.global_batch_size * job.seq_len))
        setup = job.setup or 0.0
        ways = [Run(s.gpus, (setup + s.seconds * updates) / SECONDS_PER_HOUR, s.method, "GPU-hours") for s in found.steps]
        if not ways:
            return None, None, found.reason
        fastest = min(ways, key=lambda run: (run.hours, run.gpus))
        limit = job.deadline / SECONDS_PER_HOUR if job.deadline is not None else float("inf")
        inside = [run for run in ways if run.hours <= limit]
        if not inside:
            late = format_seconds((fastest.hours - limit) * SECONDS_PER_HOUR)
            took = format_seconds(fastest.hours * SECONDS_PER_HOUR)
            return None, None, f"deadline: the fastest run takes {took}, {late} too long"
        cheapest = min(ways, key=lambda run: run.gpus * run.hours)
        thrifty = min(inside, key=lambda run: (run.gpus * run.hours, run.gpus))
        if thrifty is not cheapest:
            thrifty = Run(thrifty.gpus, thrifty.hours, thrifty.detail, "deadline")
        return thrifty, fastest, ""


def _target(key: str, machine: MachineType) -> Target:
    counts = tuple(2**i for i in range(machine.gpu_count.bit_length()))
    return Target(key, machine.gpu, machine.gpu.memory_bytes, counts, machine.instance)


def _steps(answer: Answer, key: str, machine: MachineType) -> Steps:
    """The plans of one machine, or the closest miss."""
    plans = [plan for plan in answer.plans if plan.target.label == key]
    steps = tuple(Step(plan.request.method.name, plan.gpu_count, plan.hours * SECONDS_PER_HOUR) for plan in plans if plan.hours)
    if steps:
        return Steps(steps, "")
    if plans:
        time = plans[0].time
        return Steps((), time.reason if time and time.reason else f"no time is known for {machine.gpu.name}")
    missed = [rejected.plan for rejected in answer.rejected if rejected.plan.target.label == key]
    if not missed:
        return Steps((), "the global batch cannot be split over its cards")
    closest = min(missed, key=lambda plan: plan.short_by_bytes)
    short = format_gib(closest.short_by_bytes)
    return Steps((), f"GPU memory: {closest.request.method.name} on {closest.gpu_count} GPUs is short by {short}")
