"""The meter of many configurations at once: events are written down as they come and summed when the segment ends.

`Meter` takes arrays too, but then compares and copies small arrays at every birth. What is born and dies when does not depend on
the sizes, so here a segment is a table (event, configuration) and its peak the largest of its running sums: the same bytes.
"""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tuneplan.planner.graph.meter import Meter, Segment
from tuneplan.planner.graph.tensor import CATEGORIES, TEMPORARY, Size

if TYPE_CHECKING:
    from tuneplan.planner.parallel.step import Piece

Ints: TypeAlias = NDArray[np.int64]

MOST = 512
"""Configurations up to which a table is small; above, `Meter` is as fast and needs less memory."""
_KINDS = np.arange(len(CATEGORIES))[:, None]


class ArrayMeter(Meter):
    """Counts births and deaths within a segment, for sizes that are ints or arrays of one shape.

    Attributes:
        only: of events from now on: they happen in backwards that find gradients (True), in those that find none (False), or in
            both (None). One walk is then two segments.
    """

    __slots__ = ("_categories", "_names", "_only", "_shape", "_signs", "_sizes", "_table")

    def __init__(self, shape: tuple[int, ...]) -> None:
        """`shape`: of the arrays."""
        super().__init__()
        self._shape = shape
        self._sizes: list[Size] = []
        self._signs: list[int] = []
        self._categories: list[int] = []
        self._names: list[str] = []
        self._only: dict[int, bool] = {}
        self._table: Ints | None = None

    def add(self, size_bytes: Size, category: int) -> None:
        """A birth."""
        self._event(size_bytes, 1, category)

    def drop(self, size_bytes: Size, category: int) -> None:
        """A death."""
        self._event(size_bytes, -1, category)

    def touch(self, size_bytes: Size) -> None:
        """A birth and a death of scratch memory within one op."""
        self._event(size_bytes, 1, TEMPORARY)
        self._event(size_bytes, -1, TEMPORARY)

    def _event(self, size_bytes: Size, sign: int, category: int) -> None:
        if self.only is not None:
            self._only[len(self._sizes)] = self.only
        self._sizes.append(size_bytes)
        self._signs.append(sign)
        self._categories.append(category)
        self._names.append(self.op)

    def segment(self, accumulating: bool = False) -> Segment:
        """What was counted so far, in backwards that find gradients or in those that find none."""
        if not self._sizes:
            return super().segment()
        if self._table is None or len(self._table) != len(self._sizes):
            table: Ints = np.empty((len(self._sizes), *self._shape), np.int64)
            for index, size in enumerate(self._sizes):
                table[index] = size
            self._table = table
        rows = [i for i in range(len(self._sizes)) if self._only.get(i, accumulating) == accumulating] if self._only else None
        categories = self._categories if rows is None else [self._categories[i] for i in rows]
        signs = self._signs if rows is None else [self._signs[i] for i in rows]
        count = len(categories)
        flat: Ints = np.zeros((count + 1, prod(self._shape)), np.int64)
        found = self._table if rows is None else self._table[rows]
        np.multiply(found.reshape(count, flat.shape[1]), np.array(signs, np.int64)[:, None], out=flat[1:])
        running = flat.cumsum(0)
        at = running.argmax(0)
        own = (np.array([-1, *categories]) == _KINDS).astype(np.int64)
        before = np.arange(count + 1)[:, None] <= at
        whole = (len(CATEGORIES), *self._shape)
        delta: Any = (own @ flat).reshape(whole)
        peak: Any = (own @ (flat * before)).reshape(whole)
        total: Any = running.max(0).reshape(self._shape)
        first = int(at[0]) - 1
        names = self._names
        return Segment(delta, peak, total, "" if first < 0 else names[first if rows is None else rows[first]])


def chain(pieces: "Sequence[Piece]", shape: tuple[int, ...]) -> Segment:
    """Pieces one after the other as one segment, for arrays of a shape: what `join` and `repeat` give, in one pass.

    Axes: (piece, category, configuration).
    """
    deltas: Ints = np.empty((len(pieces), len(CATEGORIES), *shape), np.int64)
    peaks: Ints = np.empty_like(deltas)
    highest: Ints = np.empty((len(pieces), *shape), np.int64)
    for index, piece in enumerate(pieces):
        _fill(deltas[index], piece.segment.delta)
        _fill(peaks[index], piece.segment.peak)
        highest[index] = piece.segment.peak_total
    ones = (1,) * len(shape)
    counts = np.array([piece.count for piece in pieces], np.int64).reshape(-1, *ones)
    grown = (counts - 1) * deltas.sum(1)
    rising = grown > 0
    highest += np.where(rising, grown, 0)
    peaks += np.where(rising[:, None], (counts - 1)[:, None] * deltas, 0)
    deltas *= counts[:, None]
    after = deltas.cumsum(0)
    peaks += after - deltas
    totals: Ints = np.zeros((len(pieces) + 1, *shape), np.int64)
    totals[1:] = highest + (after - deltas).sum(1)
    at = totals.argmax(0)
    level: Any = np.take_along_axis(peaks, np.maximum(at - 1, 0)[None, None], 0)[0] * (at > 0)
    first = int(at.flat[0])
    delta: Any = after[-1]
    total: Any = totals.max(0)
    return Segment(delta, level, total, pieces[first - 1].segment.peak_op if first else "")


def shape_of(pieces: "Sequence[Piece]") -> tuple[int, ...]:
    """The shape to which the arrays of all pieces spread."""
    shapes: set[tuple[int, ...]] = set()
    for piece in pieces:
        delta: Any = piece.segment.delta
        if isinstance(delta, np.ndarray):
            shapes.add(delta.shape[1:])
        else:
            shapes.update([np.shape(size) for size in (*delta, piece.segment.peak_total) if not isinstance(size, int)])
    return np.broadcast_shapes(*shapes)


def _fill(row: Ints, levels: Any) -> None:
    if isinstance(levels, np.ndarray):
        row[...] = levels.reshape(len(levels), *(1,) * (row.ndim - levels.ndim), *levels.shape[1:])
    else:
        for category, size in enumerate(levels):
            row[category] = size
