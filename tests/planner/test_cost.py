"""Money: the cheapest offer that is fresh, large enough and of the right kind."""

from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneplan.hardware_profiles.loader import Instance, Offer
from tuneplan.planner.cost import STALE_DAYS, cheapest, usd

TODAY = date(2026, 1, 1)


def offer(usd_per_hour: str, gpus: int = 8, purchase: str = "on_demand", day: str | None = "2025-12-01") -> Offer:
    """An offer of so many cards."""
    instance = Instance(id=f"box-{gpus}-{usd_per_hour}", provider="House", gpu="a100-80g", gpu_count=gpus)
    return Offer(instance, purchase, Decimal(usd_per_hour), "here", day, "", "a test")


def test_the_whole_instance_is_paid_for() -> None:
    """One GPU of an eight-GPU machine costs the machine, so a smaller one wins."""
    price = cheapest([offer("20", 8), offer("5", 1)], 1, "on_demand", TODAY)
    assert price is not None
    assert ("box-1-5", Decimal(5), 1) == (price.offer.instance.id, price.usd_per_hour, price.instances)
    price = cheapest([offer("20", 8), offer("5", 1)], 2, "on_demand", TODAY)
    assert price is not None
    assert "box-8-20" == price.offer.instance.id


def test_too_few_gpus_are_no_offer() -> None:
    """Cards must share a machine; where none is large enough there is no price."""
    assert cheapest([offer("5", 4)], 8, "on_demand", TODAY) is None
    assert cheapest([], 1, "on_demand", TODAY) is None


def test_purchase_kinds_are_kept_apart() -> None:
    """A spot price is not offered to who asks for on demand."""
    offers = [offer("1", purchase="spot"), offer("9")]
    found = [cheapest(offers, 1, kind, TODAY) for kind in ("on_demand", "spot", "reserved")]
    assert [Decimal(9), Decimal(1), None] == [price.usd_per_hour if price else None for price in found]


@pytest.mark.parametrize(("days", "used"), [(0, True), (STALE_DAYS, True), (STALE_DAYS + 1, False)])
def test_old_prices_are_left_out(days: int, used: bool) -> None:
    """A price older than the limit is not used; its age is told."""
    day = date.fromordinal(TODAY.toordinal() - days).isoformat()
    price = cheapest([offer("1", day=day)], 1, "on_demand", TODAY)
    assert used == (price is not None)
    if price is not None:
        assert days == price.age_days


def test_a_price_without_a_date_says_so() -> None:
    """No date means no age, not age zero."""
    price = cheapest([offer("1", day=None)], 1, "on_demand", TODAY)
    assert price is not None
    assert price.age_days is None


def test_dollars_are_exact() -> None:
    """An hour and a half at 27.45 dollars an hour, to the cent."""
    price = cheapest([offer("27.45")], 8, "on_demand", TODAY)
    assert price is not None
    assert Decimal("41.18") == usd(price, 5400.0)
    assert Decimal("0.00") == usd(price, 0.0)


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_longer_is_never_cheaper(a: float, b: float) -> None:
    """Cost grows with time."""
    price = cheapest([offer("3.21")], 1, "on_demand", TODAY)
    assert price is not None
    assert usd(price, min(a, b)) <= usd(price, max(a, b))
