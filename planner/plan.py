"""What a search gives: plans, what cannot be and why, and how plans compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from tuneplan.planner.cost import Price
from tuneplan.planner.device_memory import RuntimeMemory
from tuneplan.planner.graph.tensor import CATEGORIES
from tuneplan.planner.job import Job
from tuneplan.planner.memory import StepMemory
from tuneplan.planner.models.network import Network
from tuneplan.planner.request import Request
from tuneplan.planner.target import Target
from tuneplan.planner.timing.step_time import StepTime
from tuneplan.planner.wall_clock import WallClock


@dataclass(frozen=True, slots=True)
class Plan:
    """A configuration on given GPUs.

    Attributes:
        request: the configuration.
        target: the cards.
        memory: allocated bytes by phase, one rank.
        fragmentation_bytes: reserved above allocated.
        replayed: whether that comes from a replay of the step through the allocator, or is the allowance.
        runtime: memory outside the allocator.
        usable_bytes: of the card, less the safety margin.
        network: what the fullest rank computes.
        time: of a step, None for an unknown card.
        clock: what the hours are spent on, None without a time.
        hours: of the whole run, None without a time.
        price: the offer, None where there is none.
        usd: for all tokens, None without time or price.
    """

    request: Request
    target: Target
    memory: StepMemory
    fragmentation_bytes: int
    runtime: RuntimeMemory
    usable_bytes: int
    network: Network
    replayed: bool = False
    time: StepTime | None = None
    clock: WallClock | None = None
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
        return self.request.sharding.gpu_count

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
    """Plans, the best first, one for each method on each number of each card; and what cannot be.

    Attributes:
        job: what was asked.
        plans: those that fit.
        rejected: the closest misses, and plans that break a limit.
        evaluated: candidates that were looked at.
        plans_left_out: of a large search, how many worse plans are not among `plans`.
        rejected_left_out: the same for `rejected`.
    """

    job: Job
    plans: tuple[Plan, ...]
    rejected: tuple[Rejected, ...]
    evaluated: int = 0
    plans_left_out: int = 0
    rejected_left_out: int = 0


HOUR_DIGITS = 9


def rank(plan: Plan, objective: str) -> tuple[float, ...]:
    """Sort key: unknown figures last, then the objective, then the others as tie-breakers.

    Hours count to HOUR_DIGITS: two sums of the same seconds in another order are no difference.
    """
    unknown = float("inf")
    hours = round(plan.hours, HOUR_DIGITS) if plan.hours is not None else unknown
    cost = float(plan.usd) if plan.usd is not None else unknown
    memory = float(plan.device_bytes * plan.gpu_count)
    orders = {"cost": (cost, hours, memory), "time": (hours, cost, memory), "memory": (memory, cost, hours)}
    return orders[objective]


def front(plans: Sequence[Plan]) -> tuple[bool, ...]:
    """For each plan, whether no other one is cheaper, faster and leaves more memory of a card free (or as much of each).

    The Pareto front of cost, time and memory headroom; unknown figures are worse than any other.
    """
    keys = [(*rank(plan, "cost")[:2], float(plan.short_by_bytes)) for plan in plans]
    return tuple(not any(_dominates(other, own) for other in keys) for own in keys)


def _dominates(other: tuple[float, ...], own: tuple[float, ...]) -> bool:
    return other != own and all(a <= b for a, b in zip(other, own, strict=True))
