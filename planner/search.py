"""From a job to plans: every method, count, sharding, checkpointing, optimizer and micro-batch that fits, the best first."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal

from tuneplan.planner.cost import Price, cheapest, usd
from tuneplan.planner.device_memory import RuntimeMemory, runtime_bytes, usable_bytes
from tuneplan.planner.estimate import time_of
from tuneplan.planner.graph.meter import Segment
from tuneplan.planner.graph.tensor import CATEGORIES
from tuneplan.planner.job import Job
from tuneplan.planner.memory import StepMemory, step_memory, step_segments
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.replay import replay
from tuneplan.planner.request import Request, check_settings
from tuneplan.planner.target import Target
from tuneplan.planner.timing.step_time import StepTime
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding
from tuneplan.planner.units import SECONDS_PER_HOUR, format_gib

REPLAYED_LAYERS = 3
CLOSE_TO_FULL = 0.85


@dataclass(frozen=True, slots=True)
class Plan:
    """A configuration on given GPUs.

    Attributes:
        request: the configuration.
        target: the cards.
        memory: allocated bytes by phase, one rank.
        fragmentation_bytes: reserved above allocated.
        runtime: memory outside the allocator.
        usable_bytes: of the card, less the safety margin.
        time: of a step, None for an unknown card.
        hours: for all tokens, None without a time.
        price: the offer, None where there is none.
        usd: for all tokens, None without time or price.
    """

    request: Request
    target: Target
    memory: StepMemory
    fragmentation_bytes: int
    runtime: RuntimeMemory
    usable_bytes: int
    time: StepTime | None = None
    hours: float | None = None
    price: Price | None = None
    usd: Decimal | None = None

    @property
    def device_bytes(self) -> int:
        """Peak that the driver sees on one card."""
        return self.memory.peak.peak_bytes + self.fragmentation_bytes + self.runtime.total_bytes

    @property
    def short_by_bytes(self) -> int:
        """How much the plan is above what the card can give; negative when it fits."""
        return self.device_bytes - self.usable_bytes

    @property
    def gpu_count(self) -> int:
        """Cards used."""
        return self.request.sharding.data_parallel

    @property
    def largest_component(self) -> str:
        """The category that takes most at the peak."""
        levels = self.memory.peak.levels
        return CATEGORIES[max(range(len(levels)), key=lambda i: levels[i])]


@dataclass(frozen=True, slots=True)
class Rejected:
    """The configuration of a method on given GPUs that comes closest, and why it is not a plan."""

    plan: Plan
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Plans, the best first, one for each method on each number of each card; and what cannot be."""

    job: Job
    plans: tuple[Plan, ...]
    rejected: tuple[Rejected, ...]


class Search:
    """Evaluates candidates; walks of the ledger are shared between those that differ only in hardware or optimizer."""

    def __init__(self, job: Job, today: date) -> None:
        self.job = job
        self.today = today
        self.evaluated = 0
        self._networks: dict[tuple[str, Settings], Network] = {}
        self._segments: dict[tuple[str, Settings, int], tuple[Segment, Segment]] = {}
        self._fragments: dict[tuple[str, Settings, str], int] = {}

    def answer(self) -> Answer:
        """Look at everything the job allows. Raises InputError where a method does not fit the model."""
        plans: list[Plan] = []
        rejected: list[Rejected] = []
        for target in self.job.targets:
            for method in self.job.methods:
                for count in target.counts:
                    found = self._best(method, target, count)
                    if isinstance(found, Plan):
                        plans.append(found)
                    elif found is not None:
                        rejected.append(found)
        plans.sort(key=lambda plan: rank(plan, self.job.objective))
        return Answer(self.job, tuple(plans), tuple(rejected))

    def evaluate(
        self, method: Method, target: Target, settings: Settings, optimizer_name: str, sharding: Sharding, replayed: bool
    ) -> Plan:
        """One candidate's memory. `replayed`: work out fragmentation, else leave it at nothing."""
        self.evaluated += 1
        optimizer = OPTIMIZERS[optimizer_name]
        steps = accumulation(self.job, settings, sharding)
        settings = replace(settings, accumulating=steps > 1)
        network = self._network(method, settings)
        memory = step_memory(network, settings, optimizer, sharding, self._walked(method, settings, sharding.gradient_ranks))
        gpu = target.gpu
        runtime = runtime_bytes(
            gpu.vendor if gpu else "nvidia",
            gpu.compute_capability if gpu else None,
            sharding.data_parallel,
            network.quantized,
        )
        request = Request(self.job.spec, method, settings, optimizer, sharding, steps, gpu)
        plan = Plan(request, target, memory, 0, runtime, usable_bytes(target.memory_bytes, self.job.safety_margin))
        if replayed or plan.device_bytes > CLOSE_TO_FULL * plan.usable_bytes and plan.short_by_bytes <= 0:
            plan = replace(plan, fragmentation_bytes=self._fragmentation(plan))
        return plan

    def _network(self, method: Method, settings: Settings) -> Network:
        key = (method.name, settings)
        if key not in self._networks:
            self._networks[key] = build(self.job.spec, method, settings)
        return self._networks[key]

    def _walked(self, method: Method, settings: Settings, ranks: int) -> tuple[Segment, Segment]:
        key = (method.name, settings, ranks)
        if key not in self._segments:
            self._segments[key] = step_segments(self._network(method, settings), settings, ranks)
        return self._segments[key]

    def _fragmentation(self, plan: Plan) -> int:
        request = plan.request
        key = (request.method.name, request.settings, request.optimizer.name)
        if key not in self._fragments:
            network = self._network(request.method, request.settings)
            held = replay(network, request.settings, request.optimizer, layers=REPLAYED_LAYERS)
            self._fragments[key] = held.fragmentation_bytes
        return self._fragments[key]

    def _best(self, method: Method, target: Target, count: int) -> Plan | Rejected | None:
        """The best plan of a method on so many cards; or the closest miss; or nothing, where the batch cannot be split so."""
        best: Plan | None = None
        closest: Plan | None = None
        over: Plan | None = None
        for plan in self._candidates(method, target, count):
            if plan.short_by_bytes > 0:
                if closest is None or plan.short_by_bytes < closest.short_by_bytes:
                    closest = plan
                continue
            plan = self._priced(plan)
            if self._limit(plan):
                over = plan if over is None or rank(plan, self.job.objective) < rank(over, self.job.objective) else over
            elif best is None or rank(plan, self.job.objective) < rank(best, self.job.objective):
                best = plan
        if best is not None:
            return replace(best, fragmentation_bytes=self._fragmentation(best))
        if over is not None:
            return Rejected(over, self._limit(over), "")
        if closest is None:
            return None
        from tuneplan.planner.remedy import smallest_change

        largest = closest.largest_component
        size = dict(zip(CATEGORIES, closest.memory.peak.levels, strict=True))[largest]
        reason = (
            f"needs {format_gib(closest.device_bytes)} of {format_gib(closest.usable_bytes)} usable on each GPU; "
            f"{largest.replace('_', ' ')} alone take {format_gib(size)}"
        )
        return Rejected(closest, reason, smallest_change(self, closest))

    def _candidates(self, method: Method, target: Target, count: int) -> Iterator[Plan]:
        job = self.job
        base = job.settings_for(method, target)
        for checkpointing in job.checkpointing:
            for optimizer in job.optimizers:
                for stage in job.zero_stages if count > 1 else (0,):
                    fits = False
                    for size in self._micro_batches(count):
                        settings = replace(base, micro_batch_size=size, gradient_checkpointing=checkpointing)
                        plan = self.evaluate(method, target, settings, optimizer.name, Sharding(count, stage), False)
                        yield plan
                        if plan.short_by_bytes > 0:
                            break
                        fits = True
                    if fits:
                        break

    def _micro_batches(self, count: int) -> list[int]:
        """Sizes that split the global batch evenly over the ranks, smallest first."""
        share = self.job.global_batch_size // count
        if self.job.global_batch_size % count:
            return []
        if self.job.micro_batch_sizes:
            return [size for size in self.job.micro_batch_sizes if share % size == 0]
        return [size for size in (2**i for i in range(20)) if size <= share and share % size == 0]

    def _priced(self, plan: Plan) -> Plan:
        job = self.job
        if plan.target.gpu is None:
            return plan
        time = time_of(plan.request, self._network(plan.request.method, plan.request.settings))
        if time.seconds is None or not time.tokens_per_second:
            return replace(plan, time=time)
        seconds = job.tokens / time.tokens_per_second
        price = cheapest(plan.target.offers, plan.gpu_count, job.purchase, self.today)
        cost = usd(price, seconds) if price else None
        return replace(plan, time=time, hours=seconds / SECONDS_PER_HOUR, price=price, usd=cost)

    def _limit(self, plan: Plan) -> str:
        """Which limit of the job a plan that fits breaks; empty if none."""
        job = self.job
        if job.max_hours is not None and (plan.hours is None or plan.hours > job.max_hours):
            hours = "an unknown number of hours" if plan.hours is None else f"{plan.hours:.1f} h"
            return f"takes {hours}, above the limit of {job.max_hours:g} h"
        if job.max_usd is not None and (plan.usd is None or plan.usd > job.max_usd):
            cost = "no price is known" if plan.usd is None else f"costs ${plan.usd}"
            return f"{cost}, above the limit of ${job.max_usd}" if plan.usd is not None else f"{cost}, and a limit is set"
        return ""


def accumulation(job: Job, settings: Settings, sharding: Sharding) -> int:
    """Micro-batches of one update."""
    return max(1, job.global_batch_size // (settings.micro_batch_size * sharding.data_parallel))


def rank(plan: Plan, objective: str) -> tuple[float, ...]:
    """Sort key: unknown figures last, then the objective, then the others as tie-breakers."""
    unknown = float("inf")
    hours = plan.hours if plan.hours is not None else unknown
    cost = float(plan.usd) if plan.usd is not None else unknown
    memory = float(plan.device_bytes * plan.gpu_count)
    orders = {"cost": (cost, hours, memory), "time": (hours, cost, memory), "memory": (memory, cost, hours)}
    return orders[objective]


def find(job: Job, today: date) -> Answer:
    """Search the job's space. Raises InputError for settings, methods or limits that make no sense."""
    job.check()
    for method in job.methods:
        for target in job.targets:
            check_settings(job.settings_for(method, target), job.spec)
    return Search(job, today).answer()
