"""Which candidate of many is taken, for many cards at once: the rules of `search.Search`, on arrays.

Axes: (kind, optimizer, stage, card, micro-batch), each in the order in which the search tries them. A kind is a split of the
model and a kind of checkpointing.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Candidates:
    """All candidates of a method on one number of cards.

    Attributes:
        short: bytes above the card's memory; infinite for what is not tried.
        ranks: three sort keys, most important first; infinite where unknown.
        limited: whether a limit of the job is broken.
        states: bytes of optimizer states.
        small: bytes of states, by card, below which no further optimizer is looked at.
        gain: share by which another optimizer must be better.
    """

    short: Floats
    ranks: tuple[Floats, Floats, Floats]
    limited: Bools
    states: Floats
    small: Floats
    gain: float


@dataclass(frozen=True, slots=True)
class Taken:
    """What is taken on each card.

    Attributes:
        index: (card, 4): kind, optimizer, stage and micro-batch.
        fits: whether it fits and breaks no limit.
        over: whether it fits and breaks a limit.
    """

    index: Ints
    fits: Bools
    over: Bools


def choose(c: Candidates) -> Taken:
    """The candidate of each card: the best that fits; else the best that breaks a limit; else the closest miss.

    Micro-batches are tried from the smallest until one does not fit; of the stages, the first with one that fits is taken; where
    states are small, only the first optimizer is looked at.
    """
    stages, cards, sizes = c.short.shape[2:]
    tried = np.isfinite(c.short)
    misses = tried & (c.short > 0)
    reach = np.where(misses.any(-1), misses.argmax(-1), sizes)
    fitting = tried & (np.arange(sizes) < reach[..., None])
    any_fits = fitting.any(-1)
    last = stages - 1 - np.flip(tried.any(-1), 2).argmax(2)
    stage = np.where(any_fits.any(2), any_fits.argmax(2), last)
    active = _active(c, stage, tried & (np.arange(sizes) <= reach[..., None]))
    at = stage[:, :, None, :, None]
    allowed = np.take_along_axis(fitting, at, 2)[:, :, 0] & active[..., None]
    at_stage = [np.take_along_axis(r, at, 2)[:, :, 0] for r in c.ranks]
    limited = np.take_along_axis(c.limited, at, 2)[:, :, 0]
    card = np.arange(cards)
    index, over, fits = (np.zeros((cards, 4), np.int64), np.zeros(cards, bool), np.zeros(cards, bool))
    for broken in (True, False):
        found, kind, optimizer, place = _best(at_stage, allowed & (limited == broken), c.gain)
        chosen = np.stack([kind, optimizer, stage[kind, optimizer, card], place], 1)
        index = np.where(found[:, None], chosen, index)
        over, fits = (found, fits) if broken else (over & ~found, found)
    closest = _closest(c, reach, stage, active)
    return Taken(np.where((fits | over)[:, None], index, closest), fits, over)


def _active(c: Candidates, stage: Ints, visited: Bools) -> Bools:
    """Optimizers that are looked at: all up to the first whose states, with the last micro-batch that was tried, are small."""
    kinds, _, _, cards, sizes = c.short.shape
    at = stage[:, :, None, :, None]
    seen = np.take_along_axis(visited, at, 2)[:, :, 0]
    place = sizes - 1 - np.flip(seen, -1).argmax(-1)
    states = np.take_along_axis(np.take_along_axis(c.states, at, 2)[:, :, 0], place[..., None], -1)[..., 0]
    large = np.logical_and.accumulate(states >= c.small, axis=1)
    first: Bools = np.ones((kinds, 1, cards), bool)
    return np.concatenate([first, large[:, :-1]], axis=1)


def _best(ranks: list[Floats], allowed: Bools, gain: float) -> tuple[Bools, Ints, Ints, Ints]:
    """The least rank of each card, one series of an optimizer after the other: whether there is one, and its position."""
    kinds, optimizers, cards = allowed.shape[:3]
    rest = allowed
    for rank in ranks:
        least = np.where(rest, rank, np.inf).min(-1, keepdims=True)
        rest = rest & (np.where(rest, rank, np.inf) == least)
    place = rest.argmax(-1)
    keys = [np.take_along_axis(rank, place[..., None], -1)[..., 0] for rank in ranks]
    there: Any = allowed.any(-1)
    found: Any = np.zeros(cards, bool)
    where: Any = np.zeros((3, cards), np.int64)
    held = [np.full(cards, np.inf) for _ in ranks]
    for kind in range(kinds):
        for optimizer in range(optimizers):
            if not there[kind, optimizer].any():
                continue
            new = [key[kind, optimizer] for key in keys]
            better: Any = _less(new, held)
            other = (where[1] != optimizer) & np.isfinite(held[0])
            better = np.where(other, new[0] < held[0] * (1 - gain), better)
            take = there[kind, optimizer] & (better | ~found)
            held = [np.where(take, a, b) for a, b in zip(new, held, strict=True)]
            position = np.stack([np.full(cards, kind), np.full(cards, optimizer), place[kind, optimizer]])
            where = np.where(take, position, where)
            found = found | there[kind, optimizer]
    return found, where[0], where[1], where[2]


def _less(a: list[Floats], b: list[Floats]) -> Bools:
    """Whether one sort key is below another, figure by figure."""
    result: Any = np.zeros(a[0].shape, bool)
    for x, y in zip(reversed(a), reversed(b), strict=True):
        result = np.where(x == y, result, x < y)
    return np.asarray(result, bool)


def _closest(c: Candidates, reach: Ints, stage: Ints, active: Bools) -> Ints:
    """The miss that is least above the memory, among the first of each series that was tried."""
    kinds, optimizers, stages, cards, sizes = c.short.shape
    visited = (np.arange(stages)[None, None, :, None] <= stage[:, :, None]) & active[:, :, None] & (reach < sizes)
    first = np.minimum(reach, sizes - 1)
    short = np.where(visited, np.take_along_axis(c.short, first[..., None], -1)[..., 0], np.inf)
    flat = short.reshape(-1, cards).argmin(0)
    kind, optimizer, step = np.unravel_index(flat, (kinds, optimizers, stages))
    return np.stack([kind, optimizer, step, first[kind, optimizer, step, np.arange(cards)]], 1)
