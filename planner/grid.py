"""All candidates of a large search at once, as arrays: for each method on each number of each card, the one that is taken.

The bytes and seconds come from the functions that one estimate uses, so that both agree to the last digit; the choice follows the
rules of `search.Search` for one candidate after the other (`grid_choice`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tuneplan.hardware_profiles.records import Gpu
from tuneplan.planner.cost import SPOT, Price, cheapest
from tuneplan.planner.device_memory import checkpoint_bytes, runtime_of, usable_bytes
from tuneplan.planner.fragmentation import allowance
from tuneplan.planner.graph.tensor import OPTIMIZER_STATES, WEIGHTS
from tuneplan.planner.grid_choice import Candidates, choose
from tuneplan.planner.job import Job
from tuneplan.planner.memory import step_memory, walk
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
        self._prices: dict[tuple[str, int], Price | None] = {}

    def choices(self) -> list[Choice]:
        """One for each method on each number of each card that the batch can be split over. Raises InputError as the search."""
        return [choice for method in self.job.methods for choice in self.of_method(method)]

    def of_method(self, method: Method) -> Iterator[Choice]:
        """By classes of cards for which a step has the same bytes: one dtype and precision, FlashAttention on all or none."""
        classes: dict[Settings, list[Target]] = {}
        for target in self.job.targets:
            settings = self.job.settings_for(method, target)
            if settings.compute_capability >= AMPERE:
                settings = replace(settings, compute_capability=AMPERE)
            classes.setdefault(settings, []).append(target)
        for settings, cards in classes.items():
            kinds = [
                _Kind(self, method, replace(settings, gradient_checkpointing=checkpointing), cards)
                for checkpointing in self.job.checkpointing
                if method.allows(replace(settings, gradient_checkpointing=checkpointing))
            ]
            if kinds:
                yield from self._of_class(method, kinds, cards)

    def _of_class(self, method: Method, kinds: list["_Kind"], cards: list[Target]) -> Iterator[Choice]:
        from tuneplan.planner.search import GAIN, SMALL_STATES

        job = self.job
        for count in sorted({n for card in cards for n in card.counts if job.micro_batches(n)}):
            own = job.stages(count)
            made = [[kind.series(Sharding(count, stage, units=job.fsdp_units)) for stage in own] for kind in kinds]
            # series are (optimizer, card, micro-batch); stacked: (checkpointing, optimizer, stage, card, micro-batch)
            short, *ranks = (np.stack([np.stack([getattr(s, name) for s in line], 1) for line in made]) for name in _FIGURES)
            candidates = Candidates(
                short=short,
                ranks=(ranks[0], ranks[1], ranks[2]),
                limited=np.stack([np.stack([s.limited for s in line], 1) for line in made]),
                states=np.stack([np.stack([s.states for s in line], 1) for line in made]),
                small=np.array([SMALL_STATES * usable_bytes(card.memory_bytes, job.safety_margin) for card in cards]),
                gain=GAIN,
            )
            taken = choose(candidates)
            for index, card in enumerate(cards):
                if count not in card.counts:
                    continue
                kind, optimizer, stage, place = (int(i) for i in taken.index[index])
                at = (kind, optimizer, stage, index, place)
                settings = replace(kinds[kind].settings, micro_batch_size=int(kinds[kind].sizes[place]))
                if card.gpu is not None and card.gpu.compute_capability is not None:
                    settings = replace(settings, compute_capability=card.gpu.compute_capability)
                yield Choice(
                    method,
                    card,
                    settings,
                    job.optimizers[optimizer],
                    Sharding(count, own[stage], units=job.fsdp_units),
                    tuple(float(rank[at]) for rank in ranks),
                    bool(taken.fits[index]),
                    bool(taken.over[index]),
                    int(min(short[at], 2.0**62)),
                )

    def price(self, card: Target, count: int) -> Price | None:
        """The cheapest offer, remembered."""
        key = (card.label, count)
        if key not in self._prices:
            self._prices[key] = cheapest(card.offers, count, self.job.purchase, self.today)
        return self._prices[key]

    def count(self, candidates: int) -> None:
        """So many were evaluated."""
        self.evaluated += candidates
        if self._told is not None:
            self._told(candidates)


_FIGURES = ("short", "first", "second", "third")


@dataclass(frozen=True, slots=True)
class _Series:
    """Candidates under one sharding, by (optimizer, card, micro-batch); `states` by optimizer. See `Candidates`."""

    short: Floats
    first: Floats
    second: Floats
    third: Floats
    limited: NDArray[np.bool_]
    states: Floats


class _Kind:
    """A method under one kind of checkpointing, for cards of one class."""

    def __init__(self, grid: Grid, method: Method, settings: Settings, cards: list[Target]) -> None:
        self.grid, self.job, self.method, self.cards = grid, grid.job, method, cards
        self.sizes = np.array(sorted({n for card in cards for c in card.counts for n in self.job.micro_batches(c)}), np.int64)
        batches: Any = self.sizes
        self.settings = replace(settings, micro_batch_size=batches)
        self.usable = np.array([[usable_bytes(card.memory_bytes, self.job.safety_margin)] for card in cards], float)
        self._walked: dict[bool, _Walks] = {}

    def series(self, sharding: Sharding) -> _Series:
        """All candidates under a sharding; micro-batches that do not split the batch do not fit."""
        job, count = self.job, sharding.data_parallel
        walks = self._walks(sharding)
        steps = np.maximum(1, job.global_batch_size // (self.sizes * count))
        whole = np.isin(self.sizes, job.micro_batches(count))
        allocated, states, host = walks.memory(sharding, steps > 1)
        quantized = walks.network.quantized
        runtime = np.array([[runtime_of(card.gpu, count, quantized).total_bytes] for card in self.cards], float)
        device = allocated[:, None, :] + runtime
        hours, cost = self._money(walks, sharding, steps, states * sharding.state_ranks + host)
        memory = device * count
        first, second, third = {"cost": (cost, hours, memory), "time": (hours, cost, memory), "memory": (memory, cost, hours)}[
            job.objective
        ]
        limited = np.zeros(device.shape, bool)
        if job.max_hours is not None:
            limited |= hours > job.max_hours
        if job.max_usd is not None:
            limited |= cost > float(job.max_usd)
        self.grid.count(int(whole.sum()) * len(self.cards) * len(job.optimizers))
        return _Series(np.where(whole, device - self.usable, np.inf), first, second, third, limited, states)

    def _walks(self, sharding: Sharding) -> "_Walks":
        """The network as ranks under a sharding run it: engines that keep fp32 weights themselves have one of their own."""
        settings = sharding.settings(self.settings)
        if settings.gathered_cast not in self._walked:
            gpus = [card.gpu for card in self.cards]
            self._walked[settings.gathered_cast] = _Walks(self.job, self.method, settings, self.sizes, gpus)
        return self._walked[settings.gathered_cast]

    def _money(self, walks: "_Walks", sharding: Sharding, steps: NDArray[np.int64], states: Floats) -> tuple[Floats, Floats]:
        """Hours and dollars of the whole run by (optimizer, card, micro-batch); infinite where they are not known."""
        job = self.job
        seconds, ahead = walks.clock.under(sharding, steps)
        tokens = job.global_batch_size * job.settings.seq_len
        updates = -(-job.tokens // tokens)
        prices = [self.grid.price(card, sharding.data_parallel) for card in self.cards]
        saved = (states + walks.saved)[:, None, None]
        spot = np.array([[price is not None and price.offer.purchase == SPOT] for price in prices])
        whole = run_seconds(seconds, updates, ahead / tokens, saved, job.overheads, spot=False)
        if spot.any():
            whole = np.where(spot, run_seconds(seconds, updates, ahead / tokens, saved, job.overheads, spot=True), whole)
        usd = np.array([[float(price.usd_per_hour) if price else np.inf] for price in prices])
        hours = whole / SECONDS_PER_HOUR
        with np.errstate(invalid="ignore"):
            return hours, np.round(usd * hours, 2)


class _Walks:
    """One network, walked once for all micro-batches, timed once for all cards."""

    def __init__(self, job: Job, method: Method, settings: Settings, sizes: NDArray[np.int64], gpus: list[Gpu | None]) -> None:
        self._settings, self._sizes = settings, sizes
        self.network = build(job.spec, method, settings)
        self._optimizers = Optimizers(job.optimizers)
        self.saved = checkpoint_bytes(self.network)
        self.clock = StepSeconds(self.network, settings, job.optimizers, gpus)
        self._walks: dict[bool, Walked] = {}

    def memory(self, sharding: Sharding, accumulating: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
        """Bytes with the allowance by (optimizer, micro-batch); bytes of states by optimizer, on the device and on the host."""
        shape = (len(self._optimizers.every), len(self._sizes))
        result = np.zeros(shape)
        states = host = np.zeros(shape[0])
        for on in (False, True):
            if not (accumulating == on).any():
                continue
            settings = replace(self._settings, accumulating=on)
            self._walk(on, settings)
            memory = step_memory(self.network, settings, self._optimizers, sharding, self._walks[on])
            phases = list(memory.phases.values())
            peaks = np.stack([_whole(phase.peak_bytes, shape) for phase in phases])
            still = np.stack([_whole(p.levels[WEIGHTS] + p.levels[OPTIMIZER_STATES], shape) for p in phases])
            highest = peaks.argmax(0)[None]
            peak = np.take_along_axis(peaks, highest, 0)[0]
            held = np.take_along_axis(still, highest, 0)[0]
            result = np.where(accumulating == on, peak + allowance(peak - held), result)
            states = _whole(memory.phases["optimizer_step"].levels[OPTIMIZER_STATES], (shape[0], 1))[:, 0].astype(float)
            host = _whole(memory.host.states, (shape[0], 1))[:, 0].astype(float)
        return result, states, host

    def _walk(self, on: bool, settings: Settings) -> None:
        """Walk once; engines that need the other kind of backward find it too."""
        if on in self._walks:
            return
        self._walks[on] = walk(self.network, settings)
        if len(self._walks) == 2:
            self._walks[False].other, self._walks[True].other = self._walks[True], self._walks[False]


def _whole(value: Any, shape: tuple[int, int]) -> NDArray[np.int64]:
    """A figure as an array of a shape."""
    whole: NDArray[np.int64] = np.zeros(shape, np.int64) + value
    return whole
