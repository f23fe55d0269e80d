"""Where the layers of a traced step begin and end: its log cut at the first birth of each layer.

So that the engines of `planner.parallel` can put their gathers and reductions between layers. Deaths between two layers are
counted to the one that ran before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tuneplan.planner.graph.tensor import LOGITS
from tuneplan.profiling.fallback.forms import Events, Ints

START, FINISH = -1, -2
"""In place of a layer: what runs before the first and after the last."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Entries of the log from `first` to before `stop`, and the layer that runs: an index, START or FINISH."""

    first: int
    stop: int
    layer: int


@dataclass(frozen=True, slots=True)
class Cuts:
    """A step of two micro-batches in stretches.

    Attributes:
        order: paths of the layers, in the order in which they ran.
        forward: of the second micro-batch.
        backward: of the first, which finds no gradients, and of the second, which does.
        starts: where the log enters the first and the second forward, and the update.
        finish: paths of modules that run after the last layer.
        losses: where in each backward the loss's own is over and that of the head begins; None where nothing made logits.
    """

    order: tuple[str, ...]
    forward: tuple[Stretch, ...]
    backward: tuple[tuple[Stretch, ...], tuple[Stretch, ...]]
    starts: tuple[int, int, int]
    finish: frozenset[str]
    losses: tuple[int | None, int | None]


def cut(events: Events, phases: Sequence[tuple[str, int]], layers: Sequence[str]) -> Cuts:
    """Cut a step of two micro-batches and one update. Raises ValueError where the log is none."""
    names = [name for name, _ in phases]
    if names != ["load", "forward", "backward", "forward", "backward", "optimizer_step", "end"]:
        raise ValueError("no step of two micro-batches")
    spans = list(pairwise([start for _, start in phases]))
    own = _layer_of(events, layers)
    first, stop = spans[3]
    ran = _in_order(own, first, stop)
    place = np.full(len(layers) + 1, -1, np.int64)
    place[ran] = np.arange(len(ran))
    position = place[own]  # the last of `place` is of no layer, whose index is -1
    forward = _rising(position, first, stop, len(ran))
    backward = tuple(_falling(position, *spans[i], len(ran)) for i in (2, 4))
    last = forward[-1]
    modules = {events.names[int(k)][2] for k in set(events.kind[events.storage[last.first : last.stop]].tolist())}
    return Cuts(
        tuple(layers[i] for i in ran),
        forward,
        (backward[0], backward[1]),
        (spans[1][0], spans[3][0], spans[5][0]),
        frozenset(modules),
        (_head(events, last, backward[0][0]), _head(events, last, backward[1][0])),
    )


def _head(events: Events, forward: Stretch, backward: Stretch) -> int | None:
    """The first birth in a backward of the module that made the first logits in the forward."""

    def born(stretch: Stretch) -> list[tuple[int, int]]:
        entries = stretch.first + np.flatnonzero(events.born[stretch.first : stretch.stop])
        return list(zip(entries.tolist(), events.storage[entries].tolist(), strict=True))

    def module(storage: int) -> str:
        return events.names[int(events.kind[storage])][2]

    head = next((module(storage) for _, storage in born(forward) if events.category[storage] == LOGITS), None)
    return next((entry for entry, storage in born(backward) if head and module(storage) == head), None)


def _layer_of(events: Events, layers: Sequence[str]) -> Ints:
    """For each entry of the log the layer that a storage is born in, -1 for a death and outside of layers."""
    index = {path: i for i, path in enumerate(layers)}

    def layer(module: str) -> int:
        pieces = module.split(".")
        return next((index[path] for n in range(1, len(pieces) + 1) if (path := ".".join(pieces[:n])) in index), -1)

    of_kind = np.array([layer(module) for _, _, module in events.names], np.int64)
    found: Ints = np.where(events.born, of_kind[events.kind[events.storage]], -1)
    return found


def _in_order(own: Ints, first: int, stop: int) -> list[int]:
    seen = own[first:stop]
    found, where = np.unique(seen[seen >= 0], return_index=True)
    return [int(i) for i in found[np.argsort(where)]]


def _rising(position: Ints, first: int, stop: int, count: int) -> tuple[Stretch, ...]:
    """The forward: what is before the layers, each of them, and what is after the last."""
    found, start, current = [], first, START
    births = first + np.flatnonzero(position[first:stop] >= 0)
    for entry in births.tolist():
        if position[entry] > current:
            found.append(Stretch(start, entry, current))
            start, current = entry, int(position[entry])
    end = _behind(position, births, count - 1, stop)
    return (*found, Stretch(start, end, current), Stretch(end, stop, FINISH))


def _falling(position: Ints, first: int, stop: int, count: int) -> tuple[Stretch, ...]:
    """The backward: from the loss to the layers, the last first, and what is before them."""
    found, start, current, place = [], first, FINISH, count
    births = first + np.flatnonzero(position[first:stop] >= 0)
    for entry in births.tolist():
        if position[entry] < place:
            found.append(Stretch(start, entry, current))
            start = entry
            current = place = int(position[entry])
    end = _behind(position, births, place, stop)
    return (*found, Stretch(start, end, current), Stretch(end, stop, START))


def _behind(position: Ints, births: NDArray[np.int64], place: int, stop: int) -> int:
    """Behind the last birth of a layer, up to which its stretch goes; the end where no layer ran."""
    own = births[position[births] == place]
    return int(own[-1]) + 1 if len(own) else stop
