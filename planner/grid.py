"""All candidates of a large search at once, as arrays: for each method on each number of each card, the one that is taken.

The bytes and seconds come from the functions that one estimate uses, so that both agree to the last digit; the choice follows the
rules of `search.Search` for one candidate after the other (`grid_choice`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tuneplan.planner.grid_cards import Cards, Split
from tuneplan.planner.grid_choice import Candidates, Taken, choose
from tuneplan.planner.grid_found import Found
from tuneplan.planner.grid_walks import Networks
from tuneplan.planner.job import Job
from tuneplan.planner.methods.method import Method
from tuneplan.planner.plan import HOUR_DIGITS
from tuneplan.planner.training.attention_kernel import AMPERE
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding
from tuneplan.planner.units import SECONDS_PER_HOUR
from tuneplan.planner.wall_clock import run_seconds

if TYPE_CHECKING:
    from tuneplan.planner.search import Search

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WHOLE_UP_TO = 3
"""The first stage of sharding in which no rank has all weights at once."""
OLDER = (7, 0)
"""Stands for every card before Ampere: they run the same kernels."""


class Grid:
    """Evaluates a whole job.

    Attributes:
        evaluated: candidates so far.
    """

    def __init__(self, search: "Search", told: Callable[[int], None] | None = None, pruned: bool = True) -> None:
        """`told`: hears of every step forward, in candidates. `pruned`: see `_series`."""
        self.job = search.job
        self.today = search.today
        self.evaluated = 0
        self._told = told
        self._pruned = pruned
        self._cards: dict[tuple[int, ...], Cards] = {}
        self._known: dict[object, dict[Any, Any]] = {}

    def found(self) -> list[Found]:
        """What is taken of every method on every number of every card. Raises InputError as the search."""
        return [found for index in range(len(self.job.methods)) for found in self.of_method(index)]

    def of_method(self, index: int) -> Iterator[Found]:
        """By classes of cards for which a step has the same bytes: one dtype and precision, FlashAttention on all or none.

        `index`: of the method in the job.
        """
        job, method = self.job, self.job.methods[index]
        classes: dict[Settings, list[int]] = {}
        for place, target in enumerate(job.targets):
            settings = job.settings_for(method, target)
            capability = AMPERE if settings.compute_capability >= AMPERE else OLDER
            classes.setdefault(replace(settings, compute_capability=capability), []).append(place)
        self._known = {}
        for settings, members in classes.items():
            places = tuple(members)
            if places not in self._cards:
                self._cards[places] = Cards(job, [job.targets[place] for place in places], self.today)
            cards = self._cards[places]
            if cards.counts:
                found = self._of_class(index, method, settings, cards, places)
                if found is not None:
                    yield found

    def _of_class(self, index: int, method: Method, settings: Settings, cards: Cards, places: tuple[int, ...]) -> Found | None:
        """What is taken of a method on cards of one class, all numbers of them at once."""
        from tuneplan.planner.search import GAIN, SMALL_STATES

        job = self.job
        batches: Any = cards.sizes
        networks: dict[str, Networks] = {}
        for way in sorted(job.checkpointing, key=lambda way: way == "off"):  # less of it is built once the others are known
            own = replace(settings, gradient_checkpointing=way, micro_batch_size=batches)
            if method.allows(replace(own, micro_batch_size=1)):
                others = next(iter(networks.values()), None) if way == "off" and self._pruned else None
                networks[way] = Networks(job, method, own, cards.columns, self._known, others)
        found: dict[tuple[Split, str], _Series] = {}
        for split in cards.splits:
            for way, of_way in networks.items():
                if of_way.has(split.layout):
                    found[split, way] = _series(job, of_way, split, cards, self._pruned)
            self.count(split.candidates * len(networks) * len(job.optimizers))
        if not found:
            return None
        kinds = [(split, way) for split in cards.splits for way in job.checkpointing if (split, way) in found]
        made = [found[kind] for kind in kinds]
        every = (len(cards.cards) * len(cards.counts), len(cards.sizes))  # a number of a card is a card to `choose`

        def flat(name: str) -> Any:
            figures = np.stack([getattr(series, name) for series in made])
            return figures.reshape(*figures.shape[:3], *every)

        short, hours, cost, memory = (flat(name) for name in ("short", "hours", "cost", "memory"))
        orders = {"cost": (cost, hours, memory), "time": (hours, cost, memory), "memory": (memory, cost, hours)}
        limited = np.zeros(short.shape, bool)
        if job.max_hours is not None:
            limited |= hours > job.max_hours
        if job.max_usd is not None:
            limited |= cost > float(job.max_usd)
        states = np.stack([series.states for series in made])  # (kind, optimizer, stage, 1, count, micro-batch)
        states = np.broadcast_to(states, (*states.shape[:3], len(cards.cards), *states.shape[4:]))
        candidates = Candidates(
            short=short,
            ranks=orders[job.objective],
            limited=limited,
            states=states.reshape(short.shape),
            small=np.repeat(SMALL_STATES * cards.usable[:, 0, 0], len(cards.counts)),
            gain=GAIN,
        )
        least = np.min([series.least for series in made], 0)
        return _found(index, places, cards, kinds, candidates, choose(candidates), least)

    def count(self, candidates: int) -> None:
        """So many were looked at."""
        self.evaluated += candidates
        if self._told is not None:
            self._told(candidates)


def _found(
    method: int,
    places: tuple[int, ...],
    cards: Cards,
    kinds: list[tuple[Split, str]],
    candidates: Candidates,
    taken: Taken,
    least: Floats,
) -> Found:
    """What was chosen, of the numbers of cards that were asked for. `least`: see `_Series`."""
    asked = np.flatnonzero(cards.asked.reshape(-1))
    at = (*(taken.index[asked, axis] for axis in range(3)), asked, taken.index[asked, 3])
    layouts: dict[tuple[int, int, int], Sharding] = {}
    rows = asked % len(cards.counts)
    for kind, stage, row in {(int(k), int(s), int(r)) for k, s, r in zip(at[0], at[2], rows, strict=True)}:
        layouts[kind, stage, row] = kinds[kind][0].sharding(row, cards.stages[stage])
    fits, over = taken.fits[asked], taken.over[asked]
    short, floor = candidates.short[at], least.reshape(-1)[asked]
    return Found(
        method,
        targets=np.array(places)[asked // len(cards.counts)],
        sizes=cards.sizes[at[4]],
        ways=[kinds[kind][1] for kind in at[0]],
        optimizers=at[1],
        shardings=[layouts[int(k), int(s), int(r)] for k, s, r in zip(at[0], at[2], rows, strict=True)],
        keys=np.stack([rank[at] for rank in candidates.ranks], 1),
        fits=fits,
        over=over,
        short=np.minimum(np.where(fits | over, short, np.minimum(short, floor)), 2.0**62).astype(np.int64),
        sure=fits | over | (short < floor),
    )


@dataclass(frozen=True, slots=True)
class _Series:
    """Candidates of a kind by (optimizer, stage, card, count, micro-batch); `states` are the same for all cards.

    Attributes:
        short: bytes above the memory of a card; infinite for what is not tried.
        hours: of the whole run; infinite where they are not known.
        cost: dollars of the whole run; infinite where they are not known.
        memory: bytes of all cards.
        states: bytes of optimizer states on the fullest rank.
        least: bytes above the memory of a card that anything that was passed over has at least, by (card, count).
    """

    short: Floats
    hours: Floats
    cost: Floats
    memory: Floats
    states: Floats
    least: Floats


def _series(job: Job, networks: Networks, split: Split, cards: Cards, pruned: bool) -> _Series:
    """All candidates of a split of the model and a kind of checkpointing.

    `pruned`: of the stages of sharding those are passed over that nobody needs, because an earlier one fits, and those whose
    weights or activations alone do not fit on any card that does. None of it changes what is taken where anything fits.
    """
    shape = (len(job.optimizers), len(cards.stages), len(cards.cards), len(cards.counts), len(cards.sizes))
    device, hours, cost = (np.full(shape, np.inf) for _ in range(3))
    states = np.zeros((*shape[:2], 1, *shape[3:]))
    weights = networks.least(split.layout) if pruned else 0
    least: Floats = np.full(shape[2:4], np.inf)
    fits = np.zeros((shape[0], *shape[2:4]), bool)
    tokens = job.global_batch_size * job.settings.seq_len
    for stage, number in enumerate(cards.stages):
        places = split.places(stage)
        if pruned:
            rows = split.rows[places]
            wanted = cards.asked[:, rows] & ~fits[:, :, rows].all(0)  # (card, place): where nothing fits yet
            kept = networks.least_saved(split.sharding_of(places, number)) if len(places) else 0
            needed = (weights if number < WHOLE_UP_TO else 0) + kept - cards.usable[..., 0]
            others = split.goes_on(stage)[places] | (kept > 0)  # else a miss is wanted, to show how much is missing
            passed = wanted.any(0) & ~(wanted & ~((needed > 0) & others)).any(0)
            least[:, rows[passed]] = np.minimum(least[:, rows[passed]], needed)
            places = places[wanted.any(0) & ~passed]
        if not len(places):
            continue
        sharding = split.sharding_of(places, number)
        rows, steps = split.rows[places], split.steps[places]
        walks = networks.walks(sharding, split.layout)
        memory = walks.memory(sharding, steps)
        found = memory.allocated[:, None] + cards.runtime(walks.whole.quantized)[:, rows]
        tried = split.tried[stage][places]
        device[:, stage][:, :, rows] = np.where(tried, found, np.inf)
        fits[:, :, rows] |= (tried & (found <= cards.usable)).any(-1)
        states[:, stage][:, :, rows] = memory.states[:, None]
        seconds = walks.seconds(sharding, steps, memory.fullest)
        ahead: Any = walks.forwards(steps, memory.fullest) if job.overheads.evaluates else 0.0
        saved = (memory.states * sharding.state_parts + memory.host + walks.saved)[:, None]
        spot = cards.spot[:, rows]
        whole = run_seconds(seconds, job.updates(), ahead / tokens, saved, job.overheads, spot=False)
        if spot.any():
            taken = run_seconds(seconds, job.updates(), ahead / tokens, saved, job.overheads, spot=True)
            whole = np.where(spot, taken, whole)
        hours[:, stage][:, :, rows] = np.round(whole / SECONDS_PER_HOUR, HOUR_DIGITS)
        with np.errstate(invalid="ignore"):
            cost[:, stage][:, :, rows] = np.round(cards.usd[:, rows] * (whole / SECONDS_PER_HOUR), 2)
    return _Series(device - cards.usable, hours, cost, device * np.array(cards.counts)[:, None], states, least)
