"""Live bytes by category and their peak, for one configuration (ints) or many at once (numpy arrays).

Levels are relative: a segment of a step says how much it raises the level at most and by how much it leaves it raised, so
that segments join, and repeat, without being walked again.
"""

from dataclasses import dataclass
from typing import Any

from tuneplan.planner.graph.tensor import CATEGORIES, TEMPORARY, Size

Levels = list[Size]
_ZERO: Levels = [0] * len(CATEGORIES)


@dataclass(slots=True)
class Segment:
    """A stretch of the step.

    Attributes:
        delta: bytes by category that stay when it ends, minus those it gave back.
        peak: bytes by category above the start, at the moment when their sum is largest (nothing, if it never rises).
        peak_total: the sum of `peak`.
        peak_op: the op at that moment (for arrays: of the first configuration).
    """

    delta: Levels
    peak: Levels
    peak_total: Size
    peak_op: str


class Meter:
    """Counts births and deaths within a segment.

    Attributes:
        op: the op that runs.
        only: see `array_meter.ArrayMeter`; without a meaning here.
    """

    __slots__ = ("live", "only", "op", "peak", "peak_op", "peak_total", "total")

    def __init__(self) -> None:
        self.live: Levels = _ZERO.copy()
        self.total: Size = 0
        self.peak: Levels = _ZERO.copy()
        self.peak_total: Size = 0
        self.peak_op = ""
        self.op = ""
        self.only: bool | None = None

    def add(self, size_bytes: Size, category: int) -> None:
        """A birth."""
        self.live[category] = self.live[category] + size_bytes
        self.total = self.total + size_bytes
        higher: Any = self.total > self.peak_total
        if higher is not False:
            self._raise(higher, self.total, self.live.copy())

    def touch(self, size_bytes: Size) -> None:
        """A birth and a death of scratch memory within one op."""
        total = self.total + size_bytes
        higher: Any = total > self.peak_total
        if higher is not False:
            levels = self.live.copy()
            levels[TEMPORARY] = levels[TEMPORARY] + size_bytes
            self._raise(higher, total, levels)

    def drop(self, size_bytes: Size, category: int) -> None:
        """A death."""
        self.live[category] = self.live[category] - size_bytes
        self.total = self.total - size_bytes

    def segment(self, accumulating: bool = False) -> Segment:
        """What was counted so far. `accumulating`: see `array_meter.ArrayMeter`; without a meaning here."""
        return Segment(self.live.copy(), self.peak, self.peak_total, self.peak_op)

    def _raise(self, higher: Any, total: Size, levels: Levels) -> None:
        self.peak_total, self.peak = _choose(higher, total, levels, self.peak_total, self.peak)
        if higher is True or higher.flat[0]:
            self.peak_op = self.op


def _choose(mask: Any, total_a: Size, a: Levels, total_b: Size, b: Levels) -> tuple[Size, Levels]:
    """Elementwise: a where the mask is true, else b. Ints keep a plain branch, so numpy is not imported for them.

    Configurations mostly rise and fall together, and then nothing is chosen one by one.
    """
    if mask is True or mask is False:
        return (total_a, a) if mask else (total_b, b)
    if mask.all():
        return total_a, a
    if not mask.any():
        return total_b, b
    import numpy as np

    total: Any = np.where(mask, total_a, total_b)
    levels: Any = [np.where(mask, x, y) for x, y in zip(a, b, strict=True)]
    return total, levels


def _sums(a: Levels, b: Levels) -> Levels:
    """Level by level; most are plain zeros, and adding one to an array takes longer than finding it."""
    return [y if type(x) is int and x == 0 else x if type(y) is int and y == 0 else x + y for x, y in zip(a, b, strict=True)]


def join(first: Segment, second: Segment) -> Segment:
    """One segment after the other."""
    delta = _sums(first.delta, second.delta)
    base: Size = sum(first.delta)
    total = base + second.peak_total
    higher: Any = total > first.peak_total
    if higher is False:
        return Segment(delta, first.peak, first.peak_total, first.peak_op)
    levels = _sums(first.delta, second.peak)
    peak_total, peak = _choose(higher, total, levels, first.peak_total, first.peak)
    op = second.peak_op if higher is True or higher.flat[0] else first.peak_op
    return Segment(delta, peak, peak_total, op)


def repeat(segment: Segment, times: int) -> Segment:
    """The segment, `times` times in a row: the level is linear in the repetition, so the peak is in the first or the last."""
    if times == 1:
        return segment
    shift: Size = (times - 1) * sum(segment.delta)
    rising: Any = shift > 0
    delta = [times * d for d in segment.delta]
    if rising is False:
        return Segment(delta, segment.peak, segment.peak_total, segment.peak_op)
    last = [p + (times - 1) * d for p, d in zip(segment.peak, segment.delta, strict=True)]
    peak_total, peak = _choose(rising, segment.peak_total + shift, last, segment.peak_total, segment.peak)
    return Segment(delta, peak, peak_total, segment.peak_op)
