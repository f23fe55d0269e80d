"""A large search over several processes, a method at a time; on systems that cannot fork, in this one."""

import gc
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from tuneplan.planner.errors import InputError, TuneplanError
from tuneplan.planner.grid import Grid
from tuneplan.planner.grid_found import Found

if TYPE_CHECKING:
    from tuneplan.planner.search import Search

WORTH_FORKING = 50_000
"""Below so many candidates x layouts one process is done before others have started."""
MOST_WORKERS = 8
MANY_OBJECTS = 100_000
"""New objects after which a worker looks for garbage: networks are large, and go by themselves when nobody holds them."""

_inherited: "Search | None" = None
_grid: Grid | None = None


def found(search: "Search", told: Callable[[int], None] | None = None) -> tuple[list[Found], int]:
    """What is taken of every method on every number of every card, and how many candidates were looked at.

    Args:
        search: whose job is searched.
        told: hears of every step forward, in candidates.

    Raises:
        InputError: a method does not fit the model.
    """
    workers = min(os.cpu_count() or 1, len(search.job.methods), MOST_WORKERS)
    forks = "fork" in multiprocessing.get_all_start_methods()
    if search.job.candidates * search.job.most_splits < WORTH_FORKING or workers < 2 or not forks:
        grid = Grid(search, told)
        return grid.found(), grid.evaluated
    return _forked(search, told, workers)


def whole(search: "Search", method: int) -> list[Found]:
    """The same of one method, by its place in the job, with nothing passed over."""
    return list(Grid(search, pruned=False).of_method(method))


def _forked(search: "Search", told: Callable[[int], None] | None, workers: int) -> tuple[list[Found], int]:
    global _inherited  # noqa: PLW0603 (what a forked process inherits need not be sent to it)
    _inherited = search
    every: list[Found] = []
    evaluated = 0
    try:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
            for answer in pool.map(_of_method, range(len(search.job.methods))):
                if isinstance(answer, str):
                    raise InputError(answer)
                count, own = answer
                every += own
                evaluated += count
                if told is not None:
                    told(count)
    finally:
        _inherited = None
    return every, evaluated


def _of_method(index: int) -> str | tuple[int, list[Found]]:
    """In a forked process: what is taken of one method, or in words why it cannot be."""
    global _grid  # noqa: PLW0603 (cards are looked up once in each process)
    assert _inherited is not None
    if _grid is None:
        _grid = Grid(_inherited)
        gc.freeze()  # what was inherited lives as long as the process, which is short
        gc.set_threshold(MANY_OBJECTS)
    before = _grid.evaluated
    try:
        own = list(_grid.of_method(index))
    except TuneplanError as error:
        return str(error)
    return _grid.evaluated - before, own
