"""Many configurations in one table: what each would be by itself."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneplan.planner.graph.array_meter import ArrayMeter, chain, shape_of
from tuneplan.planner.graph.meter import Meter, Segment, join, repeat
from tuneplan.planner.graph.tensor import CATEGORIES
from tuneplan.planner.parallel.step import NOTHING, Piece

RUNS = 3
STEP = st.tuples(
    st.sampled_from(("add", "drop", "touch")),
    st.one_of(st.integers(0, 50), st.lists(st.integers(0, 50), min_size=RUNS, max_size=RUNS)),
    st.integers(0, len(CATEGORIES) - 1),
)
STEPS = st.lists(STEP, max_size=12)


def counted(steps: Sequence[tuple[str, Any, int]], meter: Meter, run: int | None = None) -> Segment:
    """The segment of births and deaths; of one run, or of all where `run` is None."""
    for index, (kind, size, category) in enumerate(steps):
        meter.op = str(index)
        many = np.array(size) if isinstance(size, list) and run is None else size
        nbytes: Any = many[run] if isinstance(many, list) and run is not None else many
        if kind == "touch":
            meter.touch(nbytes)
        else:
            getattr(meter, kind)(nbytes, category)
    return meter.segment()


def of_run(segment: Segment, run: int) -> tuple[list[int], list[int], int]:
    """The figures of one run."""
    every = [np.broadcast_to(np.asarray(x), (RUNS,)) for x in (*segment.delta, *segment.peak, segment.peak_total)]
    figures = [int(x[run]) for x in every]
    return figures[: len(CATEGORIES)], figures[len(CATEGORIES) : -1], figures[-1]


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_a_table_is_many_meters(steps: list[tuple[str, Any, int]]) -> None:
    """Levels, peak and what stays of each configuration, and the op at the first one's peak."""
    found = counted(steps, ArrayMeter((RUNS,)))
    for run in range(RUNS):
        assert of_run(counted(steps, Meter(), run), 0) == of_run(found, run)
    assert counted(steps, Meter(), 0).peak_op == found.peak_op


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(STEPS, st.integers(1, 4), st.booleans()), min_size=1, max_size=5))
def test_a_chain_is_joined_and_repeated(parts: list[tuple[list[tuple[str, Any, int]], int, bool]]) -> None:
    """Pieces of tables, of plain meters and of ints in one pass are those joined one after the other."""
    pieces, alone = [], [NOTHING] * RUNS
    for steps, count, table in parts:
        pieces.append(Piece(counted(steps, ArrayMeter((RUNS,)) if table else Meter()), count))
        alone = [join(alone[run], repeat(counted(steps, Meter(), run), count)) for run in range(RUNS)]
    found = chain(pieces, (RUNS,))
    for run in range(RUNS):
        assert of_run(alone[run], 0) == of_run(found, run)
    assert alone[0].peak_op == found.peak_op


def test_shapes_spread() -> None:
    """Micro-batches along one axis, ranks along another: the segment has both."""
    batches = counted([("add", [1, 2, 3], 3)], ArrayMeter((RUNS,)))
    ranks = Meter()
    column: Any = np.array([[10], [20]])
    ranks.add(column, 5)
    pieces = [Piece(batches), Piece(ranks.segment(), 2)]
    assert (2, RUNS) == shape_of(pieces)
    found: Any = chain(pieces, shape_of(pieces)).peak_total
    assert [[21, 22, 23], [41, 42, 43]] == found.tolist()


@pytest.mark.parametrize("size", [7, [7, 8, 9]])
def test_nothing_is_above_nothing(size: Any) -> None:
    """Deaths alone have no peak."""
    found = counted([("drop", size, 0)], ArrayMeter((RUNS,)))
    assert ([0, 0, 0], "") == (np.asarray(found.peak_total).tolist(), found.peak_op)
