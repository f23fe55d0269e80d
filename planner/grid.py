"""All candidates of a large search at once, as arrays: for each method on each number of each card, the one that is taken.

Axes of an array are (card, optimizer, micro-batch), one array for each method, kind of checkpointing, number of cards and
sharding stage. The bytes and seconds come from the functions that one estimate uses, so that both agree to the last digit; the choice
follows the rules of `search.Search` for one candidate after the other.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tuneplan.planner.cost import SPOT, cheapest
from tuneplan.planner.device_memory import checkpoint_bytes, runtime_of, usable_bytes
from tuneplan.planner.fragmentation import allowance
from tuneplan.planner.graph.tensor import OPTIMIZER_STATES
from tuneplan.planner.job import Job
from tuneplan.planner.memory import StepMemory, step_memory, walk
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.target import Target
from tuneplan.planner.timing.grid_time import CardRates, card_rates, step_seconds
from tuneplan.planner.timing.work import network_work
from tuneplan.planner.training.attention_kernel import AMPERE
from tuneplan.planner.training.optimizers import Optimizer
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding
from tuneplan.planner.units import SECONDS_PER_HOUR
from tuneplan.planner.wall_clock import run_seconds

if TYPE_CHECKING:
    from tuneplan.planner.search import Search

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Choice:
    """What is taken of a method on a number of a card.

    Attributes:
        method: the method.
        target: the card.
        settings: micro-batch and checkpointing included.
        optimizer: the update.
        sharding: over the cards.
        key: sort key by the job's objective; infinite where it does not fit or a limit is broken.
        fits: whether it fits and keeps the limits.
        short_by_bytes: how much it is above the card's memory.
    """

    method: Method
    target: Target
    settings: Settings
    optimizer: Optimizer
    sharding: Sharding
    key: tuple[float, ...]
    fits: bool
    short_by_bytes: int


@dataclass(frozen=True, slots=True)
class _Series:
    """Candidates of one kind of checkpointing and one sharding stage on a number of cards, for cards of one class.

    Attributes:
        settings: with micro-batches as an array.
        sharding: over the cards.
        short: bytes above the card's memory.
        ranks: cost, hours and memory over all cards, in the order of the objective; infinite where unknown.
        limited: whether a limit of the job is broken.
        states: bytes of optimizer states, by optimizer.
    """

    settings: Settings
    sharding: Sharding
    short: Floats
    ranks: tuple[Floats, Floats, Floats]
    limited: Bools
    states: Floats


def size_of(job: Job) -> int:
    """Candidates of a job: micro-batches x stages x kinds of checkpointing x optimizers x methods, over numbers of cards."""
    spread = sum(
        len(job.micro_batches(count)) * (len(job.zero_stages) if count > 1 else 1)
        for target in job.targets
        for count in target.counts
    )
    return spread * len(job.checkpointing) * len(job.optimizers) * len(job.methods)


class Grid:
    """Evaluates a whole job.

    Attributes:
        evaluated: candidates so far.
        total: candidates in all.
    """

    def __init__(self, search: "Search", told: Callable[[int], None] | None = None) -> None:
        """`told` hears of every step forward, in candidates."""
        self.job = search.job
        self.today = search.today
        self.total = size_of(self.job)
        self.evaluated = 0
        self._told = told
        self._rates: dict[tuple[int, ...], CardRates] = {}

    def choices(self) -> list[Choice]:
        """One for each method on each number of each card that the batch can be split over. Raises InputError as the search."""
        found: list[Choice] = []
        for method in self.job.methods:
            for settings, cards in self._classes(method):
                found += self._of_class(method, settings, cards)
        return found

    def _classes(self, method: Method) -> Iterator[tuple[Settings, list[Target]]]:
        """Cards for which a step has the same bytes: the same dtype and precision, and FlashAttention on all or none."""
        groups: dict[Settings, list[Target]] = {}
        for target in self.job.targets:
            settings = self.job.settings_for(method, target)
            able = settings.compute_capability >= AMPERE
            capability = AMPERE if able else settings.compute_capability
            groups.setdefault(replace(settings, compute_capability=capability), []).append(target)
        yield from groups.items()

    def _of_class(self, method: Method, base: Settings, cards: list[Target]) -> Iterator[Choice]:
        series: dict[int, list[list[_Series]]] = {}
        counts = sorted({count for card in cards for count in card.counts if self.job.micro_batches(count)})
        for checkpointing in self.job.checkpointing:
            settings = replace(base, gradient_checkpointing=checkpointing)
            if not method.allows(settings):
                continue
            kind = _Kind(self, method, settings, cards)
            for count in counts:
                stages = [kind.series(count, stage) for stage in (self.job.zero_stages if count > 1 else (0,))]
                series.setdefault(count, []).append(stages)
        for index, card in enumerate(cards):
            for count in card.counts:
                if count in series:
                    choice = self._choose(method, card, index, series[count])
                    if choice is not None:
                        yield choice

    def _choose(self, method: Method, card: Target, index: int, kinds: list[list[_Series]]) -> Choice | None:
        """The candidate that `Search._best` would take, by the same rules in the same order."""
        from tuneplan.planner.search import GAIN, SMALL_STATES

        job = self.job
        small = SMALL_STATES * usable_bytes(card.memory_bytes, job.safety_margin)
        best: dict[bool, Choice] = {}
        closest: Choice | None = None
        for stages in kinds:
            for number, optimizer in enumerate(job.optimizers):
                states = 0.0
                for s in stages:
                    states = float(s.states[number])
                    short = s.short[index, number]
                    reach = int(np.argmax(short > 0)) if (short > 0).any() else len(short)
                    if reach < len(short) and (closest is None or short[reach] < closest.short_by_bytes):
                        closest = _choice(method, card, s, index, number, reach, optimizer)
                    for limited in (False, True):
                        found = _least(s, index, number, reach, limited)
                        if found is None:
                            continue
                        new, old = _choice(method, card, s, index, number, found, optimizer), best.get(limited)
                        if old is not None and optimizer is not old.optimizer and old.key[0] != float("inf"):
                            best[limited] = new if new.key[0] < old.key[0] * (1 - GAIN) else old
                        else:
                            best[limited] = new if old is None or new.key < old.key else old
                    if reach:
                        break
                if states < small:
                    break
        return best.get(False) or best.get(True) or closest

    def rates(self, cards: Sequence[Target], dtypes: frozenset[str]) -> CardRates:
        """The cards' rates as columns, remembered."""
        key = (hash(dtypes), *(id(card) for card in cards))
        if key not in self._rates:
            self._rates[key] = card_rates([card.gpu for card in cards], dtypes)
        return self._rates[key]

    def count(self, candidates: int) -> None:
        """So many were evaluated."""
        self.evaluated += candidates
        if self._told is not None:
            self._told(candidates)


class _Kind:
    """A method under one kind of checkpointing, for cards of one class: one network, walked once for all micro-batches."""

    def __init__(self, grid: Grid, method: Method, settings: Settings, cards: list[Target]) -> None:
        self.grid, self.job, self.cards = grid, grid.job, cards
        sizes = sorted({size for card in cards for count in card.counts for size in self.job.micro_batches(count)})
        self.sizes = np.array(sizes, dtype=np.int64)
        batches: Any = self.sizes
        self.settings = replace(settings, micro_batch_size=batches)
        self.network: Network = build(self.job.spec, method, self.settings)
        self.walks = {on: walk(self.network, replace(self.settings, accumulating=on)) for on in (False, True)}
        self.work = network_work(self.network, self.settings)
        self.usable = np.array([[[usable_bytes(card.memory_bytes, self.job.safety_margin)]] for card in cards], dtype=float)

    def series(self, count: int, stage: int) -> _Series:
        """All candidates on a number of cards under a stage; micro-batches that do not split the batch do not fit."""
        job, sharding = self.job, Sharding(count, stage)
        steps = np.maximum(1, job.global_batch_size // (self.sizes * count))
        whole = np.isin(self.sizes, job.micro_batches(count))
        memories = [self._memory(optimizer, sharding, steps > 1) for optimizer in job.optimizers]
        runtime = np.array([[[runtime_of(card.gpu, count, self.network.quantized).total_bytes]] for card in self.cards], float)
        device = np.stack([peak for peak, _ in memories])[None] + runtime
        short = np.where(whole, device - self.usable, np.inf)
        self.grid.count(int(whole.sum()) * len(self.cards) * len(job.optimizers))
        hours, cost = self._money(sharding, steps, [host for _, host in memories])
        memory = device * count
        order = {"cost": (cost, hours, memory), "time": (hours, cost, memory), "memory": (memory, cost, hours)}[job.objective]
        limited = np.zeros(short.shape, bool)
        if job.max_hours is not None:
            limited |= hours > job.max_hours
        if job.max_usd is not None:
            limited |= cost > float(job.max_usd)
        states = np.array([host[0] for _, host in memories])
        return _Series(self.settings, sharding, short, order, limited, states)

    def _memory(self, optimizer: Optimizer, sharding: Sharding, accumulating: Bools) -> tuple[Floats, tuple[float, float]]:
        """Allocated peak and what is set aside for fragmentation, by micro-batch; bytes of states on the device and the host."""
        found: dict[bool, tuple[Any, StepMemory]] = {}
        for on in (False, True):
            if (accumulating == on).any():
                memory = self._step(optimizer, sharding, on)
                peaks = [np.broadcast_to(np.asarray(p.peak_bytes), self.sizes.shape) for p in memory.phases.values()]
                highest = np.argmax(np.stack(peaks), axis=0)
                levels = [
                    np.choose(
                        highest, [np.broadcast_to(np.asarray(p.levels[i]), self.sizes.shape) for p in memory.phases.values()]
                    )
                    for i in range(len(memory.peak.levels))
                ]
                found[on] = np.max(np.stack(peaks), axis=0) + allowance(levels), memory
        device = np.where(accumulating, found.get(True, found.get(False, (0,)))[0], found.get(False, found.get(True, (0,)))[0])
        one = next(iter(found.values()))[1]
        return device.astype(float), (
            float(one.phases["optimizer_step"].levels[OPTIMIZER_STATES]),
            float(one.host_optimizer_bytes),
        )

    def _step(self, optimizer: Optimizer, sharding: Sharding, on: bool) -> StepMemory:
        return step_memory(self.network, replace(self.settings, accumulating=on), optimizer, sharding, self.walks[on])

    def _money(self, sharding: Sharding, steps: NDArray[np.int64], states: list[tuple[float, float]]) -> tuple[Floats, Floats]:
        """Hours and dollars of the whole run by (card, optimizer, micro-batch); infinite where they are not known."""
        job = self.job
        rates = self.grid.rates(self.cards, self._dtypes())
        seconds, forward = step_seconds(self.network, self.settings, job.optimizers, rates, self.work, sharding, steps)
        tokens = job.global_batch_size * job.settings.seq_len
        updates = -(-job.tokens // tokens)
        prices = [cheapest(card.offers, sharding.data_parallel, job.purchase, self.grid.today) for card in self.cards]
        saved = np.array([[device * sharding.state_ranks + host] for device, host in states]) + checkpoint_bytes(self.network)
        whole = np.stack(
            [
                run_seconds(
                    seconds[i],
                    updates,
                    forward[i] / tokens,
                    saved,
                    job.overheads,
                    price is not None and price.offer.purchase == SPOT,
                )
                for i, price in enumerate(prices)
            ]
        )
        usd = np.array([[[float(price.usd_per_hour) if price else np.inf]] for price in prices])
        hours = whole / SECONDS_PER_HOUR
        with np.errstate(invalid="ignore"):
            cost = np.where(np.isfinite(usd), np.round(usd * hours, 2), np.inf)
        return hours, cost

    def _dtypes(self) -> frozenset[str]:
        settings = self.settings
        phases = (self.work.forward, self.work.recompute, self.work.backward)
        return frozenset({settings.autocast or settings.dtype, *(p.dtype for phase in phases for p in phase.products)})


def _least(s: _Series, index: int, number: int, reach: int, limited: bool) -> int | None:
    """The position of the least rank among micro-batches below `reach` that break, or do not break, a limit."""
    allowed = s.limited[index, number, :reach] == limited
    if not allowed.any():
        return None
    places = np.flatnonzero(allowed)
    return int(min(places, key=lambda place: tuple(float(r[index, number, place]) for r in s.ranks)))


def _choice(method: Method, card: Target, s: _Series, index: int, number: int, place: int, optimizer: Optimizer) -> Choice:
    sizes: Any = s.settings.micro_batch_size
    settings = replace(s.settings, micro_batch_size=int(sizes[place]))
    if card.gpu is not None and card.gpu.compute_capability is not None:
        settings = replace(settings, compute_capability=card.gpu.compute_capability)
    short = float(s.short[index, number, place])
    fits = short <= 0 and not s.limited[index, number, place]
    key = tuple(float(r[index, number, place]) for r in s.ranks)
    return Choice(method, card, settings, optimizer, s.sharding, key, fits, int(min(short, 2**62)))
