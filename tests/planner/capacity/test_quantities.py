"""Amounts with units: what they mean, and what is said of those without."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneplan.planner.capacity import quantities as q

READERS = (
    *(q.seconds, q.months, q.per_second, q.per_month, q.dollars, q.dollars_per_hour, q.dollars_per_kwh, q.dollars_per_kw_month),
    *(q.watts, q.share, q.growth, q.tokens),
)


@pytest.mark.parametrize(
    ("reader", "text", "expected"),
    [
        (q.seconds, "12 hours", 43200.0),
        (q.seconds, "500 ms", 0.5),
        (q.seconds, "1 day", 86400.0),
        (q.seconds, "2.5 min", 150.0),
        (q.months, "12 months", 12),
        (q.months, "3 years", 36),
        (q.per_second, "5/s", 5.0),
        (q.per_second, "300 requests/min", 5.0),
        (q.per_second, "86_400/day", 1.0),
        (q.per_month, "1/month", 1.0),
        (q.per_month, "730 runs/month", 730.0),
        (q.per_month, "1/day", 730 / 24),
        (q.dollars, "1599 USD", Decimal(1599)),
        (q.dollars, "$1599.50", Decimal("1599.50")),
        (q.dollars_per_hour, "12.50 USD/hour", Decimal("12.50")),
        (q.dollars_per_hour, "$12.50/h", Decimal("12.50")),
        (q.dollars_per_kwh, "0.13 USD/kWh", Decimal("0.13")),
        (q.dollars_per_kw_month, "150 USD/kW/month", Decimal(150)),
        (q.watts, "1.2 kW", 1200.0),
        (q.share, "80%", 0.8),
        (q.growth, "10%/month", 0.1),
        (q.growth, "-2 %/month", -0.02),
        (q.tokens, "10M tokens", 10**7),
        (q.tokens, 512, 512),
    ],
)
def test_amounts(reader: Any, text: Any, expected: Any) -> None:
    """Every unit once."""
    assert expected == pytest.approx(reader(text)) if isinstance(expected, float) else expected == reader(text)


@pytest.mark.parametrize("reader", [reader for reader in READERS if reader is not q.tokens])
def test_a_bare_number_lacks_its_unit(reader: Any) -> None:
    """The message shows one that has it."""
    with pytest.raises(ValueError, match=r"has no unit; write such as '"):
        reader(12)


@pytest.mark.parametrize(
    ("reader", "text", "word"),
    [
        (q.dollars, "1599 EUR", "convert other currencies"),
        (q.dollars, "1599 USD/hour", "US dollars"),
        (q.dollars, "$5 USD", "not an amount"),
        (q.dollars_per_hour, "12 USD", "US dollars a hour"),
        (q.seconds, "12 parsecs", "not a time"),
        (q.seconds, "0 hours", "not a time"),
        (q.seconds, "-1 hours", "not an amount"),
        (q.months, "10 days", "whole number of months"),
        (q.per_second, "5 tokens/s", "not a rate"),
        (q.per_second, "5", "no unit"),
        (q.per_month, "3 USD/month", "not how often"),
        (q.watts, "5 kWh", "not a power"),
        (q.share, "120%", "not a share"),
        (q.growth, "10%", "not a growth"),
        (q.growth, "500%/month", "not a growth"),
        (q.tokens, "many", "not a count"),
        (q.tokens, 1.5, "number of tokens"),
        (q.seconds, "9" * 20 + " s", "sensible"),
        (q.seconds, None, "must be an amount"),
        (q.seconds, True, "must be an amount"),
        (q.seconds, [], "must be an amount"),
    ],
)
def test_what_is_no_amount(reader: Any, text: Any, word: str) -> None:
    """Other units, other currencies, no number."""
    with pytest.raises(ValueError, match=word):
        reader(text)


@given(st.one_of(st.text(max_size=40), st.integers(), st.floats(), st.none(), st.booleans()), st.sampled_from(READERS))
def test_anything_is_a_value_or_a_short_refusal(value: Any, reader: Any) -> None:
    """Nothing but ValueError comes out, and it does not repeat endless input."""
    try:
        reader(value)
    except ValueError as error:
        text = str(error)
    else:
        text = ""
    assert len(text) < 300
