"""Money: which offer runs a plan for least, and how old its price is."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from tuneplan.hardware_profiles.loader import Offer
from tuneplan.planner.units import MEGA, SECONDS_PER_HOUR

STALE_DAYS = 548


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


def cheapest(offers: Sequence[Offer], gpu_count: int, purchase: str, today: date) -> Price | None:
    """The cheapest way to rent `gpu_count` GPUs in one machine.

    Prices older than a year and a half are left out; prices whose source has no date are used and say so.

    Args:
        offers: of machines with the right card.
        gpu_count: GPUs that must share a machine.
        purchase: on_demand, spot or reserved.
        today: for the age of a price.
    """
    prices = []
    for offer in offers:
        if offer.purchase != purchase or offer.instance.gpu_count < gpu_count:
            continue
        age = (today - date.fromisoformat(offer.date)).days if offer.date else None
        if age is None or age <= STALE_DAYS:
            prices.append(Price(offer, 1, offer.usd_per_hour, age))
    return min(prices, key=lambda p: (p.usd_per_hour, p.offer.instance.gpu_count, p.offer.instance.provider), default=None)


def usd(price: Price, seconds: float) -> Decimal:
    """Dollars for a run of so many seconds, to the cent."""
    return (price.usd_per_hour * Decimal(seconds) / SECONDS_PER_HOUR).quantize(Decimal("0.01"))


def usd_per_million(price: Price, gpus_of_one: int, tokens_per_second: float) -> Decimal:
    """Dollars for a million tokens from servers that fill the rented machine, each on `gpus_of_one` GPUs, always at full load."""
    servers = max(1, price.offer.instance.gpu_count * price.instances // gpus_of_one)
    hours = Decimal(MEGA / (tokens_per_second * servers)) / SECONDS_PER_HOUR
    return (price.usd_per_hour * hours).quantize(Decimal("0.0001"))
