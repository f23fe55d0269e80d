"""Meters and segments: joining and repeating is walking again."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tuneplan.planner.graph.meter import Meter, Segment, join, repeat
from tuneplan.planner.graph.tensor import ACTIVATIONS, TEMPORARY

events = st.lists(
    st.tuples(st.sampled_from(["add", "drop", "touch"]), st.integers(0, 100), st.sampled_from([ACTIVATIONS, TEMPORARY])),
    max_size=12,
)


def walk(steps: list[tuple[str, int, int]]) -> Segment:
    """Count a list of births and deaths."""
    meter = Meter()
    for index, (kind, size, category) in enumerate(steps):
        meter.op = str(index)
        if kind == "touch":
            meter.touch(size)
        else:
            getattr(meter, kind)(size, category)
    return meter.segment()


def figures(segment: Segment) -> tuple[list[int], int, int]:
    """What a segment says, less the name of its op."""
    return segment.delta, segment.peak_total, sum(segment.peak)


@given(events, events)
def test_joined_is_walked_on(first: list[tuple[str, int, int]], second: list[tuple[str, int, int]]) -> None:
    """Two segments joined are the two lists walked one after the other."""
    assert figures(walk(first + second)) == figures(join(walk(first), walk(second)))


@given(events, st.integers(1, 6))
def test_repeated_is_walked_as_often(steps: list[tuple[str, int, int]], times: int) -> None:
    """A segment repeated is its list walked that many times."""
    assert figures(walk(steps * times)) == figures(repeat(walk(steps), times))


@given(events)
def test_levels_at_the_peak_sum_to_it(steps: list[tuple[str, int, int]]) -> None:
    """The peak is the sum of its levels, and never below the start or the end."""
    segment = walk(steps)
    assert segment.peak_total == sum(segment.peak)
    assert segment.peak_total >= max(0, sum(segment.delta))


@given(st.lists(events, min_size=2, max_size=4))
def test_arrays_are_many_meters(runs: list[list[tuple[str, int, int]]]) -> None:
    """One meter with arrays counts what a meter for each configuration counts."""
    length = min(len(run) for run in runs)
    meter = Meter()
    for index in range(length):
        kind, _, category = runs[0][index]
        sizes = np.array([run[index][1] for run in runs])
        if kind == "touch":
            meter.touch(sizes)  # type: ignore[arg-type]
        else:
            getattr(meter, kind)(sizes, category)
    together = meter.segment()
    for position, run in enumerate(runs):
        alone = walk([(runs[0][i][0], run[i][1], runs[0][i][2]) for i in range(length)])
        assert alone.peak_total == int(np.broadcast_to(together.peak_total, (len(runs),))[position])


def test_the_op_of_the_peak_is_the_first_that_reaches_it() -> None:
    """A later op of the same height does not take the name."""
    assert "0" == walk([("add", 5, ACTIVATIONS), ("drop", 5, ACTIVATIONS), ("add", 5, ACTIVATIONS)]).peak_op
