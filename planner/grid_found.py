"""What a large search takes of a method, as columns, from which the best are worked out in full."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tuneplan.planner.job import Job
from tuneplan.planner.methods.method import Method
from tuneplan.planner.target import Target
from tuneplan.planner.training.optimizers import Optimizer
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
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


@dataclass(frozen=True, slots=True)
class Found:
    """A row for each number of each card of a class; cards and optimizers by their place in the job.

    Attributes:
        method: by its place in the job.
        targets: cards.
        sizes: micro-batches.
        ways: of checkpointing.
        optimizers: see above.
        shardings: over the cards.
        keys: see `Choice.key` (row, figure).
        fits: see `Choice`.
        over: see `Choice`.
        short: see `Choice.short_by_bytes`; where nothing fits and not all was evaluated, no more than that.
        sure: whether it is that.
    """

    method: int
    targets: Ints
    sizes: Ints
    ways: list[str]
    optimizers: Ints
    shardings: list[Sharding]
    keys: Floats
    fits: Bools
    over: Bools
    short: Ints
    sure: Bools

    def choice(self, row: int, job: Job) -> Choice:
        """One row in full."""
        method, target = job.methods[self.method], job.targets[self.targets[row]]
        settings = replace(
            job.settings_for(method, target), micro_batch_size=int(self.sizes[row]), gradient_checkpointing=self.ways[row]
        )
        return Choice(
            method,
            target,
            settings,
            job.optimizers[self.optimizers[row]],
            self.shardings[row],
            tuple(float(figure) for figure in self.keys[row]),
            bool(self.fits[row]),
            bool(self.over[row]),
            int(self.short[row]),
        )


@dataclass(frozen=True, slots=True)
class Best:
    """The best and the closest of many.

    Attributes:
        fitting: that fit and keep the limits, the best first.
        others: that break a limit or do not fit, the closest first.
        left_out: how many more there are of each.
    """

    fitting: list[Choice]
    others: list[Choice]
    left_out: tuple[int, int]


def every(found: Sequence[Found], job: Job) -> list[Choice]:
    """All rows in full."""
    return [one.choice(row, job) for one in found for row in range(len(one.sizes))]


def best(found: Sequence[Found], job: Job, most_fitting: int, most_others: int, again: Callable[[int], list[Found]]) -> Best:
    """So many of those that fit, by their keys, and of those that do not: what breaks a limit first, then by the bytes above.

    `again`: gives all of a method, by its place in the job, without passing anything over.
    """
    places = [(one, row) for one in found for row in range(len(one.sizes))]
    if not places:
        return Best([], [], (0, 0))
    fits, over, short, keys = (
        np.concatenate([getattr(one, name) for one in found]) for name in ("fits", "over", "short", "keys")
    )
    by_key = [int(i) for i in np.lexsort(keys.T[::-1]) if fits[i]]
    by_bytes = [int(i) for i in np.lexsort((short, ~over)) if not fits[i]]
    unsure = {places[i][0].method for i in by_bytes[:most_others] if not places[i][0].sure[places[i][1]]}
    if unsure:
        known = [one for one in found if one.method not in unsure]
        known += [one for method in unsure for one in again(method)]
        return best(sorted(known, key=lambda one: one.method), job, most_fitting, most_others, again)
    fitting, others = (
        [one.choice(row, job) for one, row in (places[i] for i in order[:most])]
        for order, most in ((by_key, most_fitting), (by_bytes, most_others))
    )
    return Best(fitting, others, (len(by_key) - len(fitting), len(by_bytes) - len(others)))
