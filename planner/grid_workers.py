"""A large search over several processes, a method at a time; on systems that cannot fork, in this one."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuneplan.planner.errors import InputError, TuneplanError
from tuneplan.planner.grid import Choice, Grid
from tuneplan.planner.job import Job
from tuneplan.planner.methods.method import Method
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding

if TYPE_CHECKING:
    from tuneplan.planner.search import Search

WORTH_FORKING = 50_000
"""Below so many candidates one process is done before others have started."""
MOST_WORKERS = 8

_inherited: "Search | None" = None


@dataclass(frozen=True, slots=True)
class Place:
    """A choice as it is sent between processes: its card and optimizer by their place in the job. See `grid.Choice`."""

    target: int
    optimizer: int
    settings: Settings
    sharding: Sharding
    key: tuple[float, ...]
    fits: bool
    over: bool
    short_by_bytes: int

    @classmethod
    def of(cls, c: Choice, job: Job) -> "Place":
        """Take out what the other process has."""
        target = next(i for i, t in enumerate(job.targets) if t is c.target)
        optimizer = next(i for i, o in enumerate(job.optimizers) if o is c.optimizer)
        return cls(target, optimizer, c.settings, c.sharding, c.key, c.fits, c.over, c.short_by_bytes)

    def on(self, method: Method, job: Job) -> Choice:
        """Put in what this process has."""
        target, optimizer = job.targets[self.target], job.optimizers[self.optimizer]
        rest = (self.key, self.fits, self.over, self.short_by_bytes)
        return Choice(method, target, self.settings, optimizer, self.sharding, *rest)


def choices(search: "Search", told: Callable[[int], None] | None = None) -> tuple[list[Choice], int]:
    """What is taken of every method on every number of every card, and how many candidates were looked at.

    Args:
        search: whose job is searched.
        told: hears of every step forward, in candidates.

    Raises:
        InputError: a method does not fit the model.
    """
    workers = min(os.cpu_count() or 1, len(search.job.methods), MOST_WORKERS)
    forks = "fork" in multiprocessing.get_all_start_methods()
    if search.job.candidates < WORTH_FORKING or workers < 2 or not forks:
        grid = Grid(search, told)
        return grid.choices(), grid.evaluated
    return _forked(search, told, workers)


def _forked(search: "Search", told: Callable[[int], None] | None, workers: int) -> tuple[list[Choice], int]:
    global _inherited  # noqa: PLW0603 (what a forked process inherits need not be sent to it)
    _inherited = search
    found: list[Choice] = []
    evaluated = 0
    job = search.job
    try:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
            for method, answer in zip(job.methods, pool.map(_of_method, range(len(job.methods))), strict=True):
                if isinstance(answer, str):
                    raise InputError(answer)
                count, places = answer
                found += [choice.on(method, job) for choice in places]
                evaluated += count
                if told is not None:
                    told(count)
    finally:
        _inherited = None
    return found, evaluated


def _of_method(index: int) -> str | tuple[int, list[Place]]:
    """In a forked process: the choices of one method, or in words why it cannot be."""
    assert _inherited is not None
    grid = Grid(_inherited)
    job = _inherited.job
    try:
        made = [Place.of(choice, job) for choice in grid.of_method(job.methods[index])]
    except TuneplanError as error:
        return str(error)
    return grid.evaluated, made
