"""Forms: what a step's tensors can be, found again from four values; and what has none."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given
from hypothesis import strategies as st

from tuneplan.profiling.fallback.sizes import MULTIPLES, Form, constant, fit, near, of_batch

LENGTHS = (261, 773, 1024)
BATCH = 2
POINTS = ((2, 256), (3, 400), (7, 511), (2, 900))
COEFFICIENT = st.integers(0, 10**6)


def values(form: Form, batch: int = BATCH) -> tuple[list[int], int]:
    """What a trace at three lengths, and at twice the batch, would find."""
    return [form.at(batch, length) for length in LENGTHS], form.at(2 * batch, LENGTHS[0])


@given(
    base=COEFFICIENT, power=st.sampled_from([0, 1]), multiple=st.sampled_from(MULTIPLES), c0=COEFFICIENT, c1=st.integers(1, 10**6)
)
def test_lines_are_found_again(base: int, power: int, multiple: int, c0: int, c1: int) -> None:
    """At lengths and batches that were not traced, roundings included."""
    form = Form(base, power, multiple, 0, c0, c1, 0)
    found = fit(*values(form), BATCH, LENGTHS)

    assert found is not None
    assert [form.at(b, n) for b, n in POINTS] == [found.at(b, n) for b, n in POINTS]


@pytest.mark.parametrize(
    "form",
    [constant(17), Form(0, 1, 1, 0, 0, 0, 6), Form(0, 1, 8, 1, 0, 0, 4), Form(0, 0, 1, 0, 0, 0, 1), Form(0, 1, 1, 0, 20, 5, 3)],
    ids=["constant", "scores", "a mask with padded rows", "a mask for all", "scores beside virtual tokens"],
)
def test_squares_are_found_again(form: Form) -> None:
    """Scores, masks and what virtual tokens make of them."""
    found = fit(*values(form), BATCH, LENGTHS)

    assert found is not None
    assert [form.at(b, n) for b, n in POINTS] == [found.at(b, n) for b, n in POINTS]


@pytest.mark.parametrize(("three", "double"), [([10, 11, 12], 23), ([100, 300, 200], 200), ([7, 8, 9], None)])
def test_what_has_no_form(three: list[int], double: int | None) -> None:
    """Neither whole numbers a token nor a length's square: no form, rather than one that is nearly right."""
    assert fit(three, double, BATCH, LENGTHS) is None


def test_near_forms_pass_through_the_ends() -> None:
    """Bytes moved by an op whose operands share no form are close."""
    three = [2 * length * 64 + length * 8 for length in LENGTHS]
    found = near(three, 4 * LENGTHS[0] * 64 + LENGTHS[0] * 8, BATCH, LENGTHS)

    assert [pytest.approx(value, rel=0.02) for value in three] == [found.at(BATCH, length) for length in LENGTHS]


def test_a_size_of_the_batch_alone() -> None:
    """A line through two batches; what is no whole number a sequence has none."""
    form = of_batch(100 + 3 * 7, 100 + 6 * 7, 3)

    assert [107, 121, 100 + 50 * 7] == [form.at(batch, 1) for batch in (1, 3, 50)]
    with pytest.raises(ValueError, match="no whole number"):
        of_batch(10, 11, 2)
