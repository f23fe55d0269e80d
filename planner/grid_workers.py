"""A large search over several processes, a method at a time; on systems that cannot fork, in this one."""

import gc
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from tuneplan.planner.errors import InputError, TuneplanError
from tuneplan.planner.grid import Grid
from tuneplan.planner.grid_found import Found
from tuneplan.planner.methods.method import Method

if TYPE_CHECKING:
    from tuneplan.planner.search import Search

WORTH_FORKING = 50_000
"""Below so many candidates x layouts one process is done before others have started."""
MOST_WORKERS = 8
MANY_OBJECTS = 100_000
"""New objects after which a worker looks for garbage: networks are large, and go by themselves when nobody holds them."""

Own: TypeAlias = tuple[int, list[Found]]
"""How many candidates of a method were looked at, and what is taken of it."""

_inherited: "Search | None" = None
_grid: Grid | None = None


def found(search: "Search", told: Callable[[int], None] | None = None) -> tuple[list[Found], int]:
    """What is taken of every method on every number of every card, and how many candidates were looked at.

    Methods that are made of the same parts differ in name alone: they are evaluated once.

    Args:
        search: whose job is searched.
        told: hears of every step forward, in candidates.

    Raises:
        InputError: a method does not fit the model.
    """
    first = firsts(search.job.methods)
    different = sorted(set(first))
    workers = min(os.cpu_count() or 1, len(different), MOST_WORKERS)
    forks = "fork" in multiprocessing.get_all_start_methods()
    alone = workers < 2 or not forks or search.job.candidates * search.job.most_splits < WORTH_FORKING
    with _here(search, told) if alone else _forked(search, workers) as answers:
        known: dict[int, Own] = {}
        every: list[Found] = []
        evaluated = 0
        for method, same in enumerate(first):
            if same == method:
                known[method] = next(answers)
            count, own = known[same]
            every += own if same == method else [replace(one, method=method) for one in own]
            evaluated += count
            if told is not None and not (alone and same == method):  # else it was told as it was counted
                told(count)
    return every, evaluated


def firsts(methods: tuple[Method, ...]) -> list[int]:
    """For each method the place of the first that is made of the same parts, such as its own."""
    place: dict[object, int] = {}
    return [place.setdefault(method.parts, index) for index, method in enumerate(methods)]


def whole(search: "Search", method: int) -> list[Found]:
    """The same of one method, by its place in the job, with nothing passed over."""
    return list(Grid(search, pruned=False).of_method(method))


@contextmanager
def _here(search: "Search", told: Callable[[int], None] | None) -> Iterator[Iterator[Own]]:
    """What is taken of each different method in turn, found in this process."""
    grid = Grid(search, told)
    yield (_of_method(grid, index) for index in sorted(set(firsts(search.job.methods))))


@contextmanager
def _forked(search: "Search", workers: int) -> Iterator[Iterator[Own]]:
    """The same, found by so many processes."""
    global _inherited  # noqa: PLW0603 (what a forked process inherits need not be sent to it)
    _inherited = search
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"))
    try:
        yield map(_unpacked, pool.map(_in_worker, sorted(set(firsts(search.job.methods)))))
    finally:
        pool.shutdown(cancel_futures=True)  # after an error nobody wants the rest
        _inherited = None


def _in_worker(index: int) -> Own | str:
    """In a forked process: what is taken of one method, or in words why it cannot be."""
    global _grid  # noqa: PLW0603 (cards are looked up once in each process)
    assert _inherited is not None
    if _grid is None:
        _grid = Grid(_inherited)
        gc.freeze()  # what was inherited lives as long as the process, which is short
        gc.set_threshold(MANY_OBJECTS)
    try:
        return _of_method(_grid, index)
    except TuneplanError as error:
        return str(error)


def _unpacked(answer: Own | str) -> Own:
    """Raises InputError for words."""
    if isinstance(answer, str):
        raise InputError(answer)
    return answer


def _of_method(grid: Grid, index: int) -> Own:
    before = grid.evaluated
    own = list(grid.of_method(index))
    return grid.evaluated - before, own
