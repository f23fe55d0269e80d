"""Intervals and margins from the errors of published runs."""

import csv
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneplan.planner import uncertainty
from tuneplan.planner.errors import DataFileError, InputError
from tuneplan.planner.uncertainty import factor, interval, log_ratios, margin, student_t

# Student's t, upper 5 % and 1 %: any table, such as NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2.
TABLE = [(0.05, 5, 2.015), (0.05, 11, 1.796), (0.05, 30, 1.697), (0.01, 7, 2.998), (0.01, 11, 2.718), (0.01, 60, 2.390)]


@pytest.mark.parametrize(("chance", "degrees", "expected"), TABLE)
def test_students_t(chance: float, degrees: int, expected: float) -> None:
    """The expansion agrees with the tables to 0.3 %."""
    assert expected == pytest.approx(student_t(chance, degrees), rel=0.003)


@given(st.floats(0.002, 0.49), st.floats(1.01, 3))
def test_less_risk_keeps_more_free(chance: float, times: float) -> None:
    """The margin grows as the accepted chance shrinks, and stays a share."""
    higher = min(chance * times, 0.5)

    assert margin(higher) <= margin(chance) < 1


@given(st.integers(1, 10**12), st.integers(0, 10**10))
def test_an_interval_holds_its_estimate(reserved: int, runtime: int) -> None:
    """The estimate lies between the ends, and what is outside the allocator moves both alike."""
    bare, whole = interval(reserved), interval(reserved, runtime)

    assert bare.low_bytes <= reserved <= bare.high_bytes
    assert (bare.low_bytes + runtime, bare.high_bytes + runtime) == (whole.low_bytes, whole.high_bytes)


def test_the_margin_fits_an_interval() -> None:
    """A card filled up to the margin holds the upper end of the interval."""
    card = 80 * 2**30
    usable = card * (1 - margin(0.05))

    assert interval(int(usable), chance=0.05).high_bytes == pytest.approx(card, rel=1e-6)


def test_most_published_rows_lie_within() -> None:
    """Of the rows that the interval rests on, about as many exceed it as it says: at most two at 5 %."""
    above = [ratio for ratio in log_ratios() if ratio > math.log(factor(0.05))]

    assert len(above) <= 2


@pytest.mark.parametrize("chance", [0, -0.1, 0.6, 1, float("nan")])
def test_chances_that_cannot_be_judged(chance: float) -> None:
    """A dozen runs say nothing of one chance in a million, and nobody accepts more than even odds."""
    with pytest.raises(InputError, match="oom-chance"):
        margin(chance)


@pytest.mark.parametrize("text", ["", "source,run,estimated_bytes,measured_bytes\n", "a\nb\n"])
def test_a_broken_file(text: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too few rows, or none, is a broken data file."""
    path = uncertainty.Path(str(tmp_path)) / "rows.csv"
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(uncertainty, "ROWS", path)
    log_ratios.cache_clear()
    with pytest.raises(DataFileError):
        log_ratios()
    log_ratios.cache_clear()


def test_rows_name_their_source() -> None:
    """Every row says where it was published, and which run it is."""
    with uncertainty.ROWS.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            assert "@" in row["source"]
            assert row["run"]
