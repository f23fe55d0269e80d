"""From a job to plans: every method, count, sharding, checkpointing, optimizer and micro-batch that fits, the best first."""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from datetime import date
from math import inf
from typing import TYPE_CHECKING, Any

from tuneplan.hardware_profiles.loader import Gpu
from tuneplan.planner.cost import SPOT, cheapest, usd
from tuneplan.planner.device_memory import RuntimeMemory, checkpoint_bytes, runtime_of, usable_bytes
from tuneplan.planner.errors import InputError
from tuneplan.planner.fragmentation import allowance, moving_bytes
from tuneplan.planner.graph.tensor import CATEGORIES, OPTIMIZER_STATES
from tuneplan.planner.job import Job
from tuneplan.planner.memory import finds_gradients, step_memory, walk
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.parallel.step import Walked
from tuneplan.planner.plan import Answer, Plan, Rejected, rank
from tuneplan.planner.request import Request, check_settings
from tuneplan.planner.target import Target
from tuneplan.planner.timing.request_time import time_of
from tuneplan.planner.timing.work import NetworkWork, network_work
from tuneplan.planner.training.objective import for_method
from tuneplan.planner.training.optimizers import Optimizer
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding
from tuneplan.planner.units import SECONDS_PER_HOUR, format_gib
from tuneplan.planner.wall_clock import wall_clock

if TYPE_CHECKING:
    from tuneplan.planner.parallel.layout import Part

LARGE = 5_000
"""From so many candidates on, they are evaluated as arrays; below, that would cost more than it saves."""
MOST_PLANS, MOST_REJECTED = 60, 8
"""So many plans and rejections of a large search are worked out in full."""
GAIN = 0.02
"""An optimizer after the first of the job's must make the objective better by this share to be taken."""
SMALL_STATES = 0.01
"""Below this share of the usable memory, optimizer states do not decide anything, and only the first optimizer is looked at."""


class Search:
    """Evaluates candidates; walks of the ledger are shared between those that differ only in hardware or optimizer."""

    def __init__(self, job: Job, today: date) -> None:
        self.job = job
        self.today = today
        self.evaluated = 0
        self._first: dict[object, str] = {}  # by parts
        self._alike: dict[str, str] = {}
        self._networks: dict[tuple[str, Settings], Network] = {}
        self._known: dict[tuple[str, Settings], dict[Hashable, Any]] = {}  # of weights, which the batch does not change
        self._walks: dict[tuple[str, Settings], Walked] = {}
        self._fragments: dict[tuple[str, Settings, str], int] = {}
        self._works: dict[tuple[str, Settings], NetworkWork] = {}
        self._parts: dict[tuple[str, Settings, Sharding, bool], tuple[Part, ...] | InputError] = {}
        self._runtimes: dict[tuple[str, int, bool], RuntimeMemory] = {}

    def answer(self, told: Callable[[int], None] | None = None) -> Answer:
        """Look at everything the job allows. Raises InputError where a method does not fit the model.

        `told`: hears how many more candidates were looked at, or passed over because one before them does not fit.
        """
        if self.job.alike and self.job.candidates >= LARGE:
            return self._large(told)
        plans: list[Plan] = []
        rejected: list[Rejected] = []
        for target in self.job.targets:
            for method in self.job.methods:
                for count in target.counts:
                    found = self._best(method, target, count)
                    if told is not None:
                        told(self.job.candidates_on(count))
                    if isinstance(found, Plan):
                        plans.append(found)
                    elif found is not None:
                        rejected.append(found)
        self._settle(plans, rejected)
        return Answer(self.job, tuple(plans), tuple(rejected), self.evaluated)

    def _large(self, told: Callable[[int], None] | None) -> Answer:
        """The same on arrays; only the best plans and the closest misses are worked out in full."""
        from tuneplan.planner import grid_found, grid_workers

        found, evaluated = grid_workers.found(self, told)
        best = grid_found.best(found, self.job, MOST_PLANS, MOST_REJECTED, lambda method: grid_workers.whole(self, method))
        plans = [self._priced(self.evaluate(*choice.candidate)) for choice in best.fitting]
        rejected = []
        for choice in best.others:
            plan = self._priced(self.evaluate(*choice.candidate))
            rejected.append(Rejected(plan, self._limit(plan), "") if choice.over else self._miss(plan))
        self._settle(plans, rejected)
        return Answer(self.job, tuple(plans), tuple(rejected), evaluated, *best.left_out)

    def _settle(self, plans: list[Plan], rejected: list[Rejected]) -> None:
        """Sort, and replay the first plan and every one whose replay is known; one that then does not fit is searched anew."""
        index = 0
        plans.sort(key=lambda plan: rank(plan, self.job.objective))
        while index < len(plans):
            plan = plans[index]
            index += 1
            settled = plan.replayed or not plan.request.replays
            if settled or (index > 1 and self._replay_key(plan) not in self._fragments):
                continue
            checked = self.replayed(plan)
            found = checked if checked.short_by_bytes <= 0 else self._best(plan.request.method, plan.target, plan.gpu_count)
            del plans[index - 1]
            if isinstance(found, Plan):
                plans.append(found)
            elif found is not None:
                rejected.append(found)
            index = 0
            plans.sort(key=lambda plan: rank(plan, self.job.objective))

    def evaluate(self, method: Method, target: Target, settings: Settings, optimizer: Optimizer, sharding: Sharding) -> Plan:
        """One candidate's memory, with the fragmentation of a replay if there was one, else an allowance."""
        self.evaluated += 1
        steps = accumulation(self.job, settings, sharding)
        settings = sharding.settings(replace(settings, accumulating=steps > 1))
        settings = for_method(settings, method, steps, sharding.data_parallel)
        network = self._network(method, settings)
        if sharding.splits_model:
            from tuneplan.planner.parallel.layout import fullest

            rank = fullest(self._split(method, settings, sharding), settings, optimizer, sharding, steps)
            memory, own = rank.memory, rank.network
        else:
            found = replace(settings, accumulating=finds_gradients(settings, sharding))
            memory, own = step_memory(network, settings, optimizer, sharding, self._walked(method, found)), network
        runtime = self._runtime(target.gpu, sharding.gpu_count, network.quantized)
        request = Request(self.job.spec, method, settings, optimizer, sharding, steps, target.gpu)
        usable = usable_bytes(target.memory_bytes, self.job.safety_margin)
        known = self._fragments.get((method.name, settings, optimizer.name)) if request.replays else None
        fragmentation = allowance(moving_bytes(memory.peak.levels)) if known is None else known
        return Plan(request, target, memory, fragmentation, runtime, usable, own, replayed=known is not None)

    def _runtime(self, gpu: Gpu | None, ranks: int, quantized: bool) -> RuntimeMemory:
        key = (gpu.id if gpu else "", ranks, quantized)
        if key not in self._runtimes:
            self._runtimes[key] = runtime_of(gpu, ranks, quantized)
        return self._runtimes[key]

    def _split(self, method: Method, settings: Settings, sharding: Sharding) -> "tuple[Part, ...]":
        """The parts of the model under a layout. Raises InputError where the model cannot be split so, each time it is asked."""
        from tuneplan.planner.parallel.layout import rank_parts

        of_layout = replace(sharding, data_parallel=sharding.expert_parallel, zero_stage=0, units="root")
        key = (*self._key(method, replace(settings, accumulating=False)), of_layout, finds_gradients(settings, sharding))
        if key not in self._parts:
            try:
                self._parts[key] = rank_parts(self.job.spec, method, settings, sharding, self._network(method, settings))
            except InputError as error:
                self._parts[key] = error
        found = self._parts[key]
        if isinstance(found, InputError):
            raise found
        return found

    def _name(self, method: Method) -> str:
        """The name of the first method made of the same parts: such methods are one network."""
        if method.name not in self._alike:
            self._alike[method.name] = self._first.setdefault(method.parts, method.name)
        return self._alike[method.name]

    def _key(self, method: Method, settings: Settings) -> tuple[str, Settings]:
        """What a network is remembered by: without fp32 adapters there is nothing that is cast as it is gathered."""
        if settings.gathered_cast and not any(getattr(part, "autocast_adapter_dtype", False) for part in method.parts):
            settings = replace(settings, gathered_cast=False)
        return self._name(method), settings

    def _network(self, method: Method, settings: Settings) -> Network:
        key = self._key(method, replace(settings, accumulating=False))
        if key not in self._networks:
            network = self._networks[key] = build(self.job.spec, method, settings)
            network.known = self._known.setdefault((key[0], replace(key[1], micro_batch_size=1)), network.known)
        return self._networks[key]

    def _walked(self, method: Method, settings: Settings) -> Walked:
        key = self._key(method, settings)
        if key not in self._walks:
            self._walks[key] = walk(self._network(method, settings), settings)
        return self._walks[key]

    def replayed(self, plan: Plan) -> Plan:
        """The plan with its fragmentation replayed; sharded plans keep the allowance (their states are not single blocks)."""
        request = plan.request
        if not request.replays or plan.replayed:
            return plan
        key = self._replay_key(plan)
        if key not in self._fragments:
            from tuneplan.planner.replay import ENOUGH_LAYERS, replay

            network = self._network(request.method, request.settings)
            held = replay(network, request.settings, request.optimizer, layers=ENOUGH_LAYERS)
            self._fragments[key] = held.fragmentation_bytes
        return replace(plan, fragmentation_bytes=self._fragments[key], replayed=True)

    @staticmethod
    def _replay_key(plan: Plan) -> tuple[str, Settings, str]:
        return plan.request.method.name, plan.request.settings, plan.request.optimizer.name

    def _best(self, method: Method, target: Target, count: int) -> Plan | Rejected | None:
        """The best plan of a method on so many cards; or the closest miss; or nothing, where the batch cannot be split so."""
        best: Plan | None = None
        over: Plan | None = None
        closest: Plan | None = None
        for plan in self._candidates(method, target, count):
            if plan.short_by_bytes > 0:
                closest = plan if closest is None else min(closest, plan, key=lambda p: p.short_by_bytes)
                continue
            priced = self._priced(plan)
            if self._limit(priced):
                over = self._better(priced, over)
            else:
                best = self._better(priced, best)
        if best is not None:
            return best
        if over is not None:
            return Rejected(over, self._limit(over), "")
        return self._miss(closest) if closest is not None else None

    def _better(self, plan: Plan, other: Plan | None) -> Plan:
        """The better of two; another optimizer must be worth more than GAIN."""
        if other is None:
            return plan
        new, old = rank(plan, self.job.objective), rank(other, self.job.objective)
        if plan.request.optimizer is not other.request.optimizer and old[0] != float("inf"):
            return plan if new[0] < old[0] * (1 - GAIN) else other
        return plan if new < old else other

    def _miss(self, plan: Plan) -> Rejected:
        """Why the closest miss does not fit, and what would make it."""
        from tuneplan.planner.remedy import smallest_change

        largest = plan.largest_component
        size = dict(zip(CATEGORIES, plan.memory.peak.levels, strict=True))[largest]
        reason = (
            f"needs {format_gib(plan.device_bytes)} of {format_gib(plan.usable_bytes)} usable on each GPU; "
            f"{largest.replace('_', ' ')} alone take {format_gib(size)}"
        )
        return Rejected(plan, reason, smallest_change(self, plan))

    def _candidates(self, method: Method, target: Target, count: int) -> Iterator[Plan]:
        """Every candidate that may fit, and the first that does not of each series of growing micro-batches.

        Of the sharding stages, the lowest that fits is taken.
        """
        job = self.job
        base = job.settings_for(method, target)
        for split in job.splits(count):
            if split.splits_model and not self._can_be(method, base, split):
                continue
            for checkpointing in job.checkpointing:
                chosen = replace(base, gradient_checkpointing=checkpointing)
                if job.spec.allows(method, chosen):
                    yield from self._of_split(method, target, chosen, split)

    def _can_be(self, method: Method, settings: Settings, split: Sharding) -> bool:
        """Whether the model can be split so under a method (which micro-batch and checkpointing do not change)."""
        settings = replace(settings, micro_batch_size=1)
        try:
            self._split(method, settings, split)
        except InputError:
            return False
        return True

    def _of_split(self, method: Method, target: Target, base: Settings, split: Sharding) -> Iterator[Plan]:
        """The candidates of one layout of the model and one kind of checkpointing."""
        job, ranks = self.job, split.data_parallel
        for optimizer in job.optimizers:
            states: int = 0
            for stage in job.stages(ranks):
                fits = False
                for size in job.micro_batches(ranks):
                    settings = job.longest(replace(base, micro_batch_size=size))
                    sharding = replace(split, zero_stage=stage, units=job.fsdp_units)
                    if not job.spec.allows(method, sharding.settings(settings)):  # beyond what was traced
                        break
                    plan = self.evaluate(method, target, settings, optimizer, sharding)
                    states = plan.memory.phases["optimizer_step"].levels[OPTIMIZER_STATES]
                    yield plan
                    if plan.short_by_bytes > 0:
                        break
                    fits = True
                if fits:
                    break
            if states < SMALL_STATES * usable_bytes(target.memory_bytes, job.safety_margin):
                break

    def _priced(self, plan: Plan) -> Plan:
        job = self.job
        if plan.target.gpu is None:
            return plan
        request = replace(plan.request, settings=job.typical(plan.request.settings))
        key = (self._name(request.method), request.settings)
        network = self._network(request.method, request.settings)
        own, work = network, None
        if not request.sharding.splits_model:
            if key not in self._works:
                self._works[key] = network_work(network, request.settings)
            work = self._works[key]
        elif request.settings == plan.request.settings:
            own = plan.network
        else:  # the lengths of the mean batch are not those of the longest
            from tuneplan.planner.parallel.layout import fullest

            parts = self._split(request.method, request.settings, request.sharding)
            own = fullest(
                parts, request.settings, request.optimizer, request.sharding, request.gradient_accumulation_steps
            ).network
        time = time_of(request, own, work)
        if time.seconds is None or not time.tokens_per_second:
            return replace(plan, time=time)
        tokens = job.global_batch_size * request.settings.seq_len
        updates = job.updates()
        price = cheapest(plan.target.offers, plan.gpu_count, job.purchase, self.today)
        states = plan.memory.phases["optimizer_step"].levels[OPTIMIZER_STATES] * plan.request.sharding.state_parts
        saved = checkpoint_bytes(network) + states + plan.memory.host.states
        spot = price is not None and price.offer.purchase == SPOT
        clock = wall_clock(time.seconds, updates, time.forward_seconds / tokens, saved, job.overheads, spot)
        if clock.total == inf:
            return replace(plan, time=time, clock=clock, price=price)
        cost = usd(price, clock.total) if price else None
        return replace(plan, time=time, clock=clock, hours=clock.total / SECONDS_PER_HOUR, price=price, usd=cost)

    def _limit(self, plan: Plan) -> str:
        """Which limit of the job a plan that fits breaks; empty if none."""
        job = self.job
        if job.max_hours is not None and (plan.hours is None or plan.hours > job.max_hours):
            hours = "an unknown number of hours" if plan.hours is None else f"{plan.hours:.1f} h"
            return f"takes {hours}, above the limit of {job.max_hours:g} h"
        if job.max_usd is not None and plan.usd is None:
            return "no price is known, and a limit is set"
        if job.max_usd is not None and plan.usd is not None and plan.usd > job.max_usd:
            return f"costs ${plan.usd}, above the limit of ${job.max_usd}"
        return ""


def accumulation(job: Job, settings: Settings, sharding: Sharding) -> int:
    """Micro-batches of one update."""
    return max(1, job.global_batch_size // (settings.micro_batch_size * sharding.data_parallel))


def find(job: Job, today: date, told: Callable[[int], None] | None = None) -> Answer:
    """Search the job's space. Raises InputError for settings, methods or limits that make no sense.

    `told`: see `Search.answer`.
    """
    job.check()
    for method in job.methods:
        for target in job.targets:
            check_settings(job.settings_for(method, target))
    return Search(job, today).answer(told)
