"""Sizes of tensors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneplan.planner.graph.tensor import BITS, elements, round_block, same_shape, tensor_bytes


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (1, 512), (512, 512), (513, 1024), (10**12, 10**12)])
def test_rounding(size: int, expected: int) -> None:
    """The allocator rounds to 512 bytes."""
    assert expected == round_block(size)


@given(st.lists(st.integers(1, 100), max_size=4).map(tuple), st.sampled_from(sorted(BITS)))
def test_bytes_are_elements_by_bits(shape: tuple[int, ...], dtype: str) -> None:
    """A tensor takes its elements' bits, rounded up."""
    assert round_block(elements(shape) * BITS[dtype] // 8) == tensor_bytes(shape, dtype)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=5), st.integers(1, 64))
def test_arrays_are_ints_side_by_side(batches: list[int], width: int) -> None:
    """Sizes of arrays are the arrays of sizes."""
    sizes = tensor_bytes((np.array(batches), width), "bf16")  # type: ignore[arg-type]
    assert [tensor_bytes((batch, width), "bf16") for batch in batches] == np.asarray(sizes).tolist()


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((2, 3), (2, 3), True),
        ((2, 3), (3, 2), False),
        ((2,), (2, 1), False),
        ((np.array([1, 2]), 3), (np.array([1, 2]), 3), True),
        ((np.array([1, 2]), 3), (np.array([1, 3]), 3), False),
    ],
)
def test_same_shape(a: tuple[int, ...], b: tuple[int, ...], expected: bool) -> None:
    """Shapes agree if every configuration's do."""
    assert expected == same_shape(a, b)
