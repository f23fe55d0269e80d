"""Amounts from text and back: exact values, and refusals."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneplan.planner.errors import InputError
from tuneplan.planner.units import (
    GIB,
    MIB,
    format_count,
    format_gib,
    format_seconds,
    format_usd,
    parse_bytes,
    parse_count,
    parse_seconds,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24GiB", 24 * 2**30),
        ("24 gib", 24 * 2**30),
        (" 1.5TiB ", 3 * 2**39),
        ("80GB", 80 * 10**9),
        ("512MiB", 2**29),
        ("1_000kB", 10**6),
        ("7B", 7),
        ("2.5kib", 2560),
        ("1e3MB", 10**9),
        ("0.1GiB", 107374182),
    ],
)
def test_bytes(text: str, expected: int) -> None:
    """Binary and decimal units are what they say; a fraction of a byte is dropped."""
    assert expected == parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10M", 10**7), ("2.5B", 2_500_000_000), ("300000", 300_000), ("1k", 1000), ("1T", 10**12), ("1_000", 1000), ("1e6", 10**6)],
)
def test_counts(text: str, expected: int) -> None:
    """Counts take decimal suffixes."""
    assert expected == parse_count(text)


def test_amounts_are_exact_where_a_float_is_not() -> None:
    """Digits are not passed through a binary float."""
    assert 10**17 + 1 == parse_count("100000000000000001")
    assert 1_100_000_000 == parse_count("1.1B")


@pytest.mark.parametrize(
    "text", ["", "24", "GiB", "-1GiB", "0GiB", "nanGiB", "infGiB", "1e400GiB", "24 apples", "2**30B", "1,5GiB"]
)
def test_bytes_that_are_none(text: str) -> None:
    """Without a number, a unit or a sensible size there are no bytes."""
    with pytest.raises(InputError):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["", "M", "-1", "0", "nan", "inf", "1e400", "ten", "10 MM", "0.2", "1..2", "1e19"])
def test_counts_that_are_none(text: str) -> None:
    """Nor is there a count of nothing."""
    with pytest.raises(InputError):
        parse_count(text)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0 B"),
        (MIB - 1, "1048575 B"),
        (MIB, "1.0 MiB"),
        (GIB // 10, "0.10 GiB"),
        (GIB, "1.00 GiB"),
        (int(13.5 * GIB), "13.50 GiB"),
        (100 * GIB, "100.0 GiB"),
        (-3 * GIB, "-3.00 GiB"),
    ],
)
def test_gib(size: int, expected: str) -> None:
    """Capacity prints in binary units with three or four digits."""
    assert expected == format_gib(size)


@pytest.mark.parametrize(
    ("count", "expected"), [(0, "0"), (4096, "4,096"), (103_546_880, "103.55M"), (68_976_648_192, "68.98B"), (10**12, "1.00T")]
)
def test_count_text(count: int, expected: str) -> None:
    """Counts print with decimal suffixes."""
    assert expected == format_count(count)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.085, "85 ms"), (2.4, "2.4 s"), (186, "3.1 min"), (6.2 * 3600, "6.2 h"), (72 * 3600, "3.0 days")],
)
def test_seconds(seconds: float, expected: str) -> None:
    """Durations print in the unit that a person would use."""
    assert expected == format_seconds(seconds)


@pytest.mark.parametrize(
    ("amount", "expected"), [("0", "$0.00"), ("12.4", "$12.40"), ("999.99", "$999.99"), ("1234.4", "$1,234")]
)
def test_usd(amount: str, expected: str) -> None:
    """Cents matter below a thousand dollars."""
    assert expected == format_usd(Decimal(amount))


@given(st.integers(1, 10**18))
def test_whole_bytes_come_back(size: int) -> None:
    """An integer written out is read as itself, in bytes and as a count."""
    assert size == parse_bytes(f"{size}B") == parse_count(str(size))


@given(st.integers(MIB, 10**17))
def test_printed_bytes_are_close(size: int) -> None:
    """What is printed is within half a unit of its last digit."""
    assert size == pytest.approx(parse_bytes(format_gib(size).replace(" ", "")), rel=0.06)


@given(st.integers(1, 10**17), st.integers(1, 10**17))
def test_larger_prints_larger(a: int, b: int) -> None:
    """Order survives printing."""
    small, large = sorted((a, b))
    assert parse_bytes(format_gib(small)) <= parse_bytes(format_gib(large))


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("10min", 600.0), ("1.5 h", 5400.0), ("2d", 172800.0)])
def test_times(text: str, seconds: float) -> None:
    """A number and a unit."""
    assert seconds == parse_seconds(text)


@pytest.mark.parametrize("text", ["", "10", "min", "-5min", "1e9h", "5 weeks", "nan s"])
def test_times_that_are_none(text: str) -> None:
    """A bare number has no unit; the message gives examples."""
    with pytest.raises(InputError, match="write a number and a unit"):
        parse_seconds(text)
