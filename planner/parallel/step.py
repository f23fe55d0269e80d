"""What an engine makes of a walked step: the pieces between which it acts, and what it says of one rank."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from tuneplan.planner.graph.meter import Levels, Meter, Segment, join, repeat
from tuneplan.planner.graph.tensor import CATEGORIES, GRADIENTS, TEMPORARY, Size

EMPTY: Levels = [0] * len(CATEGORIES)
NOTHING = Segment(EMPTY, EMPTY, 0, "")
MANY = 5
"""Pieces of arrays from which on it is faster to join them all at once than one by one."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the forward or backward, `count` times in a row; `run`: index of the run it walks, -1 between blocks."""

    segment: Segment
    count: int = 1
    run: int = -1


@dataclass(slots=True)
class Walked:
    """The walks of all runs of a network, forward and backward, before they are joined: they do not depend on the ranks.

    Attributes:
        forward: pieces in order.
        backward: pieces in order.
        accumulating: every backward finds gradients, to which it adds its own.
        joined: what engines made of them, remembered by what it depends on.
        other: the same for the other kind of backward: one that finds gradients, or one that finds none.
        loss: the last run's backward in two: the loss, and from the head on; None where they are one.
    """

    forward: list[Piece]
    backward: list[Piece]
    accumulating: bool = False
    joined: dict[object, tuple[Segment, Segment]] = field(default_factory=dict)
    other: "Walked | None" = None
    loss: tuple[Segment, Segment] | None = None


@dataclass(frozen=True, slots=True)
class HostBytes:
    """What a rank keeps in host memory, in bytes."""

    weights: Size = 0
    gradients: Size = 0
    states: Size = 0
    activations: Size = 0

    @property
    def total(self) -> Size:
        """All of it."""
        return self.weights + self.gradients + self.states + self.activations


@dataclass(frozen=True, slots=True)
class RankStep:
    """One rank's step under an engine.

    Attributes:
        base: what stands from one step to the next: weights, states, buffers, and gradients that accumulate.
        forward: of a micro-batch.
        backward: of a micro-batch, reduction of gradients included.
        held: what the update finds.
        update: clipping and the update.
        host: what is kept in host memory.
    """

    base: Levels
    forward: Segment
    backward: Segment
    held: Levels
    update: Segment
    host: HostBytes = HostBytes()


def key_of(value: Any) -> Hashable:
    """A number, or an array of numbers, as something to remember by what is known of it."""
    return value if isinstance(value, int) else (value.shape, value.tobytes())


def sequence(pieces: list[Piece]) -> Segment:
    """All pieces as one segment."""
    if len(pieces) >= MANY and any(type(piece.segment.delta) is not list for piece in pieces):
        from tuneplan.planner.graph.array_meter import chain, shape_of

        return chain(pieces, shape_of(pieces))
    total = NOTHING
    for piece in pieces:
        total = join(total, repeat(piece.segment, piece.count))
    return total


def joined(walked: Walked) -> tuple[Segment, Segment]:
    """The forward and the backward of a step on one GPU, or of an engine that does nothing between blocks."""
    if None not in walked.joined:
        walked.joined[None] = sequence(walked.forward), sequence(walked.backward)
    return walked.joined[None]


class Events:
    """Buffers that an engine makes and drops between blocks, written down one after the other."""

    def __init__(self, name: str) -> None:
        """`name`: what the report calls them at the peak, such as "all-gather"."""
        self._meter = Meter()
        self._meter.op = name

    def take(self, size_bytes: int) -> "Events":
        """A buffer is made."""
        self._meter.add(size_bytes, TEMPORARY)
        return self

    def give(self, size_bytes: int) -> "Events":
        """A buffer goes."""
        self._meter.drop(size_bytes, TEMPORARY)
        return self

    def touch(self, size_bytes: int) -> "Events":
        """A buffer that is gone when the event is over."""
        self._meter.touch(size_bytes)
        return self

    def gradients(self, size_bytes: int) -> "Events":
        """Gradients are made."""
        self._meter.add(size_bytes, GRADIENTS)
        return self

    def spend(self, size_bytes: int) -> "Events":
        """Gradients go."""
        self._meter.drop(size_bytes, GRADIENTS)
        return self

    @property
    def piece(self) -> Piece:
        """All of them as a piece."""
        return Piece(self._meter.segment())
