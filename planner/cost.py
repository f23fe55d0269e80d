"""Money: which offer runs a plan for least, and how old its price is."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from tuneplan.hardware_profiles.loader import Offer
from tuneplan.hardware_profiles.loader import offers as all_offers
from tuneplan.planner.errors import UnknownNameError
from tuneplan.planner.units import MEGA, SECONDS_PER_HOUR

STALE_DAYS = 548
SPOT = "spot"
OWNED = "owned"
"""The purchase of a machine of one's own."""


@dataclass(frozen=True, slots=True)
class Price:
    """What an offer charges for a run.

    Attributes:
        offer: the instance, its provider, region, purchase kind and date.
        instances: how many are rented (a plan on one GPU of an eight-GPU instance pays for all eight).
        usd_per_hour: of all of them.
        age_days: age of the price today; None where the source has no date.
    """

    offer: Offer
    instances: int
    usd_per_hour: Decimal
    age_days: int | None

    def to_json(self) -> dict[str, object]:
        """The offer with its source."""
        return {
            "provider": self.offer.instance.provider,
            "instance": self.offer.instance.id,
            "purchase": self.offer.purchase,
            "region": self.offer.region,
            "usd_per_hour": float(self.usd_per_hour),
            "instances": self.instances,
            "date": self.offer.date,
            "date_note": self.offer.date_note,
            "age_days": self.age_days,
            "source": self.offer.source,
        }


def cheapest(offers: Sequence[Offer], gpu_count: int, purchase: str, today: date, machines: int = 1) -> Price | None:
    """The cheapest way to have `gpu_count` GPUs in a number of machines that are alike.

    Prices older than a year and a half are left out; prices whose source has no date are used and say so. A machine of one's own
    is an offer whatever the purchase.

    Args:
        offers: of machines with the right card.
        gpu_count: GPUs in all, as many in each machine.
        purchase: on_demand, spot or reserved.
        today: for the age of a price.
        machines: how many; those of one's own are one.
    """
    prices = []
    for offer in offers:
        if offer.purchase not in (purchase, OWNED) or offer.instance.gpu_count * machines < gpu_count:
            continue
        if offer.purchase == OWNED and machines > 1:
            continue
        age = (today - date.fromisoformat(offer.date)).days if offer.date else None
        if age is None or age <= STALE_DAYS:
            prices.append(Price(offer, machines, machines * offer.usd_per_hour, age))
    return min(prices, key=lambda p: (p.usd_per_hour, p.offer.instance.gpu_count, p.offer.instance.provider), default=None)


def within(offers: Sequence[Offer], clouds: Sequence[str], regions: Sequence[str]) -> tuple[Offer, ...]:
    """Offers of some providers (any if none is named) in some regions (any if none is named); names in any case.

    Raises:
        UnknownNameError: no offer, of any card, has the provider or the region.
    """
    known = {offer.instance.provider.lower() for offer in all_offers()} | {offer.instance.provider.lower() for offer in offers}
    places = {offer.region.lower() for offer in all_offers()} | {offer.region.lower() for offer in offers}
    for option, names, listed in (("cloud", clouds, known), ("region", regions, places)):
        for name in names:
            if name.lower() not in listed:
                raise UnknownNameError(option, name, sorted(listed), "plan gpus show NAME")
    wanted, where = {name.lower() for name in clouds}, {name.lower() for name in regions}
    return tuple(
        offer
        for offer in offers
        if (not wanted or offer.instance.provider.lower() in wanted) and (not where or offer.region.lower() in where)
    )


def usd(price: Price, seconds: float) -> Decimal:
    """Dollars for a run of so many seconds, to the cent."""
    return (price.usd_per_hour * Decimal(seconds) / SECONDS_PER_HOUR).quantize(Decimal("0.01"))


def usd_per_million(price: Price, gpus_of_one: int, tokens_per_second: float) -> Decimal:
    """Dollars for a million tokens from servers that fill the rented machine, each on `gpus_of_one` GPUs, always at full load."""
    servers = max(1, price.offer.instance.gpu_count * price.instances // gpus_of_one)
    hours = Decimal(MEGA / (tokens_per_second * servers)) / SECONDS_PER_HOUR
    return (price.usd_per_hour * hours).quantize(Decimal("0.0001"))
