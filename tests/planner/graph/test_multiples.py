"""Multiples of an array: made once while it is remembered, read-only, and the same as made anew."""

from collections.abc import Iterator

import numpy as np
import pytest

from tuneplan.planner.graph import multiples
from tuneplan.planner.graph.tensor import elements, round_block


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Nothing is remembered before and after."""
    multiples._made.clear()
    multiples._rounded.clear()
    yield
    multiples._made.clear()
    multiples._rounded.clear()


def test_made_once() -> None:
    """The same object for the same product, however its shape is written, and for what it is rounded to."""
    sizes = np.array([1, 2, 4])
    multiples.remember(sizes)
    assert elements((sizes, 6, 100)) is elements((20, sizes, 30))
    assert [600, 1200, 2400] == elements((sizes, 6, 100)).tolist()  # type: ignore[attr-defined]
    assert round_block(elements((sizes, 600))) is round_block(elements((sizes, 600)))
    assert [1024, 1536, 2560] == round_block(elements((sizes, 600))).tolist()  # type: ignore[attr-defined]


def test_nobody_writes_to_them() -> None:
    """A sum in place would change every other size that is the same product."""
    sizes = np.array([1, 2, 4])
    multiples.remember(sizes)
    found = multiples.times(sizes, 3)
    for shared in (sizes, found, multiples.rounded(found, 511)):
        with pytest.raises(ValueError, match="read-only"):
            shared[0] = 7


def test_other_arrays_are_multiplied_anew() -> None:
    """One that is not remembered, and the product of two of them."""
    sizes, lengths = np.array([1, 2]), np.array([3, 5])
    multiples.remember(sizes)
    assert [3, 10] == elements((sizes, lengths)).tolist()  # type: ignore[attr-defined]
    assert multiples.times(lengths, 2) is not multiples.times(lengths, 2)


def test_only_so_many_arrays_are_remembered() -> None:
    """The first goes, with all that was made of it."""
    arrays = [np.array([n]) for n in range(1, multiples.MOST_ARRAYS + 2)]
    for sizes in arrays:
        multiples.remember(sizes)
        multiples.rounded(multiples.times(sizes, 7), 511)
    assert multiples.times(arrays[0], 7) is not multiples.times(arrays[0], 7)
    assert multiples.times(arrays[1], 7) is multiples.times(arrays[1], 7)
    assert (multiples.MOST_ARRAYS, multiples.MOST_ARRAYS) == (len(multiples._made), len(multiples._rounded))
