"""The meter of many configurations at once: events are written down as they come and summed when the segment ends.

`Meter` takes arrays too, but then compares and copies small arrays at every birth. What is born and dies when does not depend on
the sizes, so here a segment is a table (event, configuration) and its peak the largest of its running sums: the same bytes.
"""

from collections.abc import Sequence
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


class ArrayMeter(Meter):
    """Counts births and deaths within a segment, for sizes that are ints or arrays of one shape.

    Attributes:
        only: of events from now on: they happen in backwards that find gradients (True), in those that find none (False), or in
            both (None). One walk is then two segments.
    """

    __slots__ = ("_events", "_shape", "_table", "_whole")

    def __init__(self, shape: tuple[int, ...]) -> None:
        """`shape`: of the arrays."""
        super().__init__()
        self._shape = shape
        self._events: list[tuple[Size, int, int, str, bool | None]] = []
        self._table: Ints | None = None
        self._whole: tuple[int, Segment] | None = None  # both kinds of backward alike, with so many events

    def add(self, size_bytes: Size, category: int) -> None:
        """A birth."""
        self._events.append((size_bytes, 1, category, self.op, self.only))

    def drop(self, size_bytes: Size, category: int) -> None:
        """A death."""
        self._events.append((size_bytes, -1, category, self.op, self.only))

    def touch(self, size_bytes: Size) -> None:
        """A birth and a death of scratch memory within one op."""
        self._events.append((size_bytes, 1, TEMPORARY, self.op, self.only))
        self._events.append((size_bytes, -1, TEMPORARY, self.op, self.only))

    def segment(self, accumulating: bool = False) -> Segment:
        """What was counted so far, in backwards that find gradients or in those that find none."""
        if not self._events:
            return super().segment()
        if self._whole is not None and self._whole[0] == len(self._events):
            return self._whole[1]
        sizes, signs, categories, names, only = zip(*self._events, strict=True)
        if self._table is None or len(self._table) != len(sizes):
            table: Ints = np.empty((len(sizes), *self._shape), np.int64)
            for index, size in enumerate(sizes):
                table[index] = size
            self._table = table.reshape(len(sizes), -1) * np.array(signs, np.int64)[:, None]
        found, kinds, rows = self._table, np.array(categories), None
        if any(kind is not None for kind in only):
            rows = [index for index, kind in enumerate(only) if kind is None or kind is accumulating]
            found, kinds = found[rows], kinds[rows]
        count = len(kinds)
        flat: Ints = np.zeros((count + 1, found.shape[1]), np.int64)
        flat[1:] = found
        running = flat.cumsum(0)
        at = running.argmax(0)
        own = np.zeros((len(CATEGORIES), count + 1), np.int64)
        own[kinds, np.arange(1, count + 1)] = 1
        before = np.arange(count + 1)[:, None] <= at
        whole = (len(CATEGORIES), *self._shape)
        delta: Any = (own @ flat).reshape(whole)
        peak: Any = (own @ (flat * before)).reshape(whole)
        total: Any = running.max(0).reshape(self._shape)
        first = int(at[0]) - 1
        segment = Segment(delta, peak, total, "" if first < 0 else names[first if rows is None else rows[first]])
        if rows is None:
            self._whole = len(sizes), segment
        return segment


def chain(pieces: "Sequence[Piece]", shape: tuple[int, ...]) -> Segment:
    """Pieces one after the other as one segment, for arrays of a shape: what `join` and `repeat` give, in one pass.

    Axes: (piece, category, configuration).
    """
    deltas: Ints = np.zeros((len(pieces), len(CATEGORIES), *shape), np.int64)
    peaks: Ints = np.zeros_like(deltas)
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
    """Levels into zeros."""
    if isinstance(levels, np.ndarray):
        row[...] = levels.reshape(len(levels), *(1,) * (row.ndim - levels.ndim), *levels.shape[1:])
    else:
        for category, size in enumerate(levels):
            if type(size) is not int or size:
                row[category] = size
