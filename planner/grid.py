"""All candidates of a large search at once, as arrays: for each method on each number of each card, the one that is taken.

The bytes and seconds come from the functions that one estimate uses, so that both agree to the last digit; the choice follows the
rules of `search.Search` for one candidate after the other (`grid_choice`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tuneplan.hardware_profiles.records import Gpu
from tuneplan.planner.cost import SPOT, cheapest
from tuneplan.planner.device_memory import checkpoint_bytes, runtime_of, usable_bytes
from tuneplan.planner.fragmentation import allowance
from tuneplan.planner.graph.tensor import OPTIMIZER_STATES, WEIGHTS
from tuneplan.planner.grid_choice import Candidates, choose
from tuneplan.planner.job import Job
from tuneplan.planner.memory import finds_gradients, step_memory, walk
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models.network import build
from tuneplan.planner.parallel.step import Walked
from tuneplan.planner.target import Target
from tuneplan.planner.timing.grid_time import StepSeconds
from tuneplan.planner.training.attention_kernel import AMPERE
from tuneplan.planner.training.optimizers import Optimizer, Optimizers
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding
from tuneplan.planner.units import SECONDS_PER_HOUR
from tuneplan.planner.wall_clock import run_seconds

if TYPE_CHECKING:
    from tuneplan.planner.search import Search

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Choice:
    """What is taken of a method on a number of a card.

    Attributes:
        method: the method.
        target: the card.
        settings: micro-batch and checkpointing included.
        optimizer: the update.
        sharding: over the cards.
        key: sort key by the job's objective; infinite where a figure is not known.
        fits: whether it fits and keeps the limits.
        over: whether it fits and breaks a limit.
        short_by_bytes: how much it is above the card's memory.
    """

    method: Method
    target: Target
    settings: Settings
    optimizer: Optimizer
    sharding: Sharding
    key: tuple[float, ...]
    fits: bool
    over: bool
    short_by_bytes: int

    @property
    def candidate(self) -> tuple[Method, Target, Settings, Optimizer, Sharding]:
        """As `Search.evaluate` takes it."""
        return self.method, self.target, self.settings, self.optimizer, self.sharding


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
        self.total = self.job.candidates
        self.evaluated = 0
        self._told = told
        self._cards: dict[tuple[int, ...], _Cards] = {}

    def choices(self) -> list[Choice]:
        """One for each method on each number of each card that the batch can be split over. Raises InputError as the search."""
        return [choice for method in self.job.methods for choice in self.of_method(method)]

    def of_method(self, method: Method) -> Iterator[Choice]:
        """By classes of cards for which a step has the same bytes: one dtype and precision, FlashAttention on all or none."""
        classes: dict[Settings, list[int]] = {}
        for index, target in enumerate(self.job.targets):
            settings = self.job.settings_for(method, target)
            capability = AMPERE if settings.compute_capability >= AMPERE else OLDER
            classes.setdefault(replace(settings, compute_capability=capability), []).append(index)
        for settings, members in classes.items():
            if tuple(members) not in self._cards:
                self._cards[tuple(members)] = _Cards(self.job, [self.job.targets[index] for index in members], self.today)
            cards = self._cards[tuple(members)]
            allowed = [
                replace(settings, gradient_checkpointing=checkpointing)
                for checkpointing in self.job.checkpointing
                if method.allows(replace(settings, gradient_checkpointing=checkpointing))
            ]
            if allowed and cards.counts:
                yield from self._of_class(method, [_Kind(self.job, method, own, cards) for own in allowed], cards)

    def _of_class(self, method: Method, kinds: list["_Kind"], cards: "_Cards") -> Iterator[Choice]:
        """The choices of a method on cards of one class, all numbers of them at once."""
        from tuneplan.planner.search import GAIN, SMALL_STATES

        job = self.job
        made = [kind.series() for kind in kinds]
        every = (len(cards.cards) * len(cards.counts), len(cards.sizes))  # a number of a card is a card to `choose`

        def flat(name: str) -> Any:
            figures = np.stack([getattr(series, name) for series in made])
            return figures.reshape(*figures.shape[:3], *every)

        short, first, second, third = (flat(name) for name in ("short", "first", "second", "third"))
        states = np.stack([series.states for series in made])  # (checkpointing, optimizer, stage, 1, count)
        states = np.broadcast_to(states, (*states.shape[:3], len(cards.cards), len(cards.counts)))
        candidates = Candidates(
            short=short,
            ranks=(first, second, third),
            limited=flat("limited"),
            states=states.reshape(*states.shape[:3], -1),
            small=np.repeat(SMALL_STATES * cards.usable[:, 0, 0], len(cards.counts)),
            gain=GAIN,
        )
        taken = choose(candidates)
        for index, card in enumerate(cards.cards):
            for number, count in enumerate(cards.counts):
                if count not in card.counts:
                    continue
                place = index * len(cards.counts) + number
                kind, optimizer, stage, size = (int(i) for i in taken.index[place])
                at = (kind, optimizer, stage, place, size)
                settings = replace(kinds[kind].settings, micro_batch_size=int(cards.sizes[size]))
                if card.gpu is not None and card.gpu.compute_capability is not None:
                    settings = replace(settings, compute_capability=card.gpu.compute_capability)
                yield Choice(
                    method,
                    card,
                    settings,
                    job.optimizers[optimizer],
                    Sharding(count, cards.stages[stage], units=job.fsdp_units),
                    (float(first[at]), float(second[at]), float(third[at])),
                    bool(taken.fits[place]),
                    bool(taken.over[place]),
                    int(min(short[at], 2.0**62)),
                )
        self.count(cards.candidates * len(kinds) * len(job.optimizers))

    def count(self, candidates: int) -> None:
        """So many were evaluated."""
        self.evaluated += candidates
        if self._told is not None:
            self._told(candidates)


OLDER = (7, 0)
"""Stands for every card before Ampere: they run the same kernels."""


class _Cards:
    """Cards of one class, and all that does not depend on the method.

    Attributes:
        cards: the cards.
        counts: numbers of them that the batch can be split over.
        sizes: micro-batches.
        stages: of sharding, in the order in which they are tried.
        tried: whether a stage is tried with a micro-batch on a number of cards (stage, count, micro-batch).
        steps: micro-batches of an update (count, micro-batch).
        usable: bytes of a card (card, 1, 1).
        usd: for an hour (card, count, 1), infinite where there is no price.
        spot: whether the machine may be taken away (card, count, 1).
        candidates: for each kind of checkpointing and optimizer.
    """

    def __init__(self, job: Job, cards: list[Target], today: date) -> None:
        self.cards = cards
        self.counts = sorted({n for card in cards for n in card.counts if job.micro_batches(n)})
        self.sizes: Ints = np.array(sorted({size for n in self.counts for size in job.micro_batches(n)}), np.int64)
        found = dict.fromkeys(stage for n in reversed(self.counts) for stage in job.stages(n))
        self.stages = tuple(found) if not found or 0 in job.zero_stages or 0 not in found else (0, *[s for s in found if s])
        whole = np.array([np.isin(self.sizes, job.micro_batches(n)) for n in self.counts])
        tried = np.array([[stage in job.stages(n) for n in self.counts] for stage in self.stages])
        self.tried = tried[:, :, None] & whole
        self.steps = np.maximum(1, job.global_batch_size // (self.sizes * np.array(self.counts, np.int64)[:, None]))
        self.usable = np.array([usable_bytes(card.memory_bytes, job.safety_margin) for card in cards], float)[:, None, None]
        prices = [[cheapest(card.offers, n, job.purchase, today) for n in self.counts] for card in cards]
        self.usd = np.array([[float(p.usd_per_hour) if p else np.inf for p in line] for line in prices])[..., None]
        self.spot = np.array([[p is not None and p.offer.purchase == SPOT for p in line] for line in prices])[..., None]
        asked = np.array([[n in card.counts for n in self.counts] for card in cards])
        self.candidates = int((asked.sum(0)[:, None] * self.tried.sum(0)).sum())
        self._runtimes: dict[bool, Floats] = {}

    def shardings(self, stage: int, units: str) -> Iterator[tuple[slice, Sharding]]:
        """One for a single card, one for all other numbers of them; with the counts that it is for."""
        tried = self.tried[self.stages.index(stage)].any(1)
        alone = int(self.counts[0] == 1)
        if alone and tried[0]:
            yield np.s_[:1], Sharding(units=units)
        if tried[alone:].any():
            ranks: Any = np.array(self.counts[alone:], np.int64)[:, None]
            yield np.s_[alone:], Sharding(ranks, stage, units=units)

    def runtime(self, quantized: bool) -> Floats:
        """Bytes outside the allocator (card, count, 1)."""
        if quantized not in self._runtimes:
            found = [[runtime_of(card.gpu, n, quantized).total_bytes for n in self.counts] for card in self.cards]
            self._runtimes[quantized] = np.array(found, float)[..., None]
        return self._runtimes[quantized]


@dataclass(frozen=True, slots=True)
class _Series:
    """Candidates of a kind by (optimizer, stage, card, count, micro-batch); `states` by (optimizer, stage, 1, count).

    See `Candidates`.
    """

    short: Floats
    first: Floats
    second: Floats
    third: Floats
    limited: NDArray[np.bool_]
    states: Floats


class _Kind:
    """A method under one kind of checkpointing, for cards of one class."""

    def __init__(self, job: Job, method: Method, settings: Settings, cards: _Cards) -> None:
        self.job, self.method, self.cards = job, method, cards
        batches: Any = cards.sizes
        self.settings = replace(settings, micro_batch_size=batches)
        self._narrows = any(getattr(part, "autocast_adapter_dtype", False) for part in method.parts)
        self._walked: dict[bool, _Walks] = {}

    def series(self) -> _Series:
        """All candidates; those that are not tried do not fit."""
        job, cards = self.job, self.cards
        shape = (len(job.optimizers), len(cards.stages), len(cards.cards), len(cards.counts), len(cards.sizes))
        device, hours, cost = (np.full(shape, np.inf) for _ in range(3))
        states = np.zeros((*shape[:2], 1, shape[3]))
        for index, stage in enumerate(cards.stages):
            for rows, sharding in cards.shardings(stage, job.fsdp_units):
                at = np.s_[:, index, :, rows]
                device[at], hours[at], cost[at], states[at] = self._under(sharding, rows)
        if cards.counts[0] == 1:  # one card has one stage, which is the last that is tried
            states[..., 0] = states[:, cards.stages.index(0), None, :, 0]
        memory = device * np.array(cards.counts)[:, None]
        orders = {"cost": (cost, hours, memory), "time": (hours, cost, memory), "memory": (memory, cost, hours)}
        limited = np.zeros(device.shape, bool)
        if job.max_hours is not None:
            limited |= hours > job.max_hours
        if job.max_usd is not None:
            limited |= cost > float(job.max_usd)
        short = np.where(cards.tried[:, None], device - cards.usable, np.inf)
        return _Series(short, *orders[job.objective], limited, states)

    def _under(self, sharding: Sharding, rows: slice) -> tuple[Floats, Floats, Floats, Floats]:
        """Bytes of a card, hours and dollars by (optimizer, card, count, micro-batch), and states by (optimizer, 1, count).

        `rows`: the counts that the sharding is over.
        """
        walks = self._walks(sharding)
        allocated, states, host = walks.memory(sharding, self.cards.steps[rows] > 1)
        device = allocated[:, None] + self.cards.runtime(walks.network.quantized)[:, rows]
        saved = states * sharding.state_ranks + host + walks.saved
        hours, cost = self._money(walks, sharding, rows, saved[:, None])
        return device, hours, cost, states[:, None, :, 0]

    def _walks(self, sharding: Sharding) -> "_Walks":
        """The network as ranks under a sharding run it: engines that keep fp32 weights themselves have one of their own."""
        settings = sharding.settings(self.settings)
        cast = settings.gathered_cast and self._narrows
        if cast not in self._walked:
            gpus = [card.gpu for card in self.cards.cards]
            self._walked[cast] = _Walks(self.job, self.method, replace(settings, gathered_cast=cast), gpus)
        return self._walked[cast]

    def _money(self, walks: "_Walks", sharding: Sharding, rows: slice, saved: Floats) -> tuple[Floats, Floats]:
        """Hours and dollars of the whole run by (optimizer, card, count, micro-batch); infinite where they are not known."""
        job, cards = self.job, self.cards
        seconds, ahead = walks.clock.under(sharding, cards.steps[rows])
        tokens = job.global_batch_size * job.settings.seq_len
        updates = job.updates()
        spot = cards.spot[:, rows]
        whole = run_seconds(seconds, updates, ahead / tokens, saved, job.overheads, spot=False)
        if spot.any():
            whole = np.where(spot, run_seconds(seconds, updates, ahead / tokens, saved, job.overheads, spot=True), whole)
        hours = whole / SECONDS_PER_HOUR
        with np.errstate(invalid="ignore"):
            return hours, np.round(cards.usd[:, rows] * hours, 2)


class _Walks:
    """One network, walked once for all micro-batches, timed once for all cards."""

    def __init__(self, job: Job, method: Method, settings: Settings, gpus: list[Gpu | None]) -> None:
        self._settings = settings
        self.network = build(job.spec, method, settings)
        self._optimizers = Optimizers(job.optimizers)
        self.saved = checkpoint_bytes(self.network)
        self.clock = StepSeconds(self.network, settings, job.optimizers, gpus)
        self._walks: dict[bool, Walked] = {}

    def memory(self, sharding: Sharding, accumulating: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
        """Bytes with the allowance by (optimizer, count, micro-batch); bytes of states by (optimizer, count, 1).

        Those on the device, and those on the host.
        """
        shape = (len(self._optimizers.every), *accumulating.shape)
        result = np.zeros(shape)
        states = host = np.zeros((*shape[:2], 1))
        for on, taken in self._kinds(sharding, accumulating):
            settings = replace(self._settings, accumulating=on)
            memory = step_memory(self.network, settings, self._optimizers, sharding, self._walk(settings, sharding))
            phases = list(memory.phases.values())
            peaks = np.stack([_whole(phase.peak_bytes, shape) for phase in phases])
            still = np.stack([_whole(p.levels[WEIGHTS] + p.levels[OPTIMIZER_STATES], shape) for p in phases])
            highest = peaks.argmax(0)[None]
            peak = np.take_along_axis(peaks, highest, 0)[0]
            held = np.take_along_axis(still, highest, 0)[0]
            result = np.where(taken, peak + allowance(peak - held), result)
            states = _whole(memory.phases["optimizer_step"].levels[OPTIMIZER_STATES], states.shape).astype(float)
            host = _whole(memory.host.states, states.shape).astype(float)
        return result, states, host

    @staticmethod
    def _kinds(sharding: Sharding, accumulating: NDArray[np.bool_]) -> list[tuple[Any, NDArray[np.bool_]]]:
        """Values of `Settings.accumulating`, and which candidates have them; FSDP reads one walk, and takes them as they are."""
        if sharding.engine_used == "fsdp":
            return [(accumulating, np.ones(accumulating.shape, bool))]
        return [(on, accumulating == on) for on in (False, True) if (accumulating == on).any()]

    def _walk(self, settings: Settings, sharding: Sharding) -> Walked:
        """The walk that the engine reads."""
        on = finds_gradients(settings, sharding)
        if on not in self._walks:
            self._walks[on] = walk(self.network, replace(settings, accumulating=on))
        return self._walks[on]


def _whole(value: Any, shape: tuple[int, ...]) -> Ints:
    """A figure as an array of a shape."""
    whole: Ints = np.zeros(shape, np.int64) + value
    return whole
