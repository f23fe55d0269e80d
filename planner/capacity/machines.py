"""Machines that a workloads file lists, each with what a month or an hour of it costs, and where the price is from."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from tuneplan.hardware_profiles.loader import Gpu, Instance, Offer, find_gpu, find_instance, load_gpus, offers, resolve
from tuneplan.planner.capacity.quantities import HOURS_PER_MONTH
from tuneplan.planner.capacity.schema import Hardware, Owned, Reserved
from tuneplan.planner.cost import STALE_DAYS, cheapest
from tuneplan.planner.units import KILO

ON_DEMAND, SPOT, RESERVED, BUY, MIXED = "on_demand", "spot", "reserved", "buy", "mixed"
KINDS = (ON_DEMAND, SPOT, RESERVED, BUY, MIXED)
FIXED = (RESERVED, BUY)
"""Kinds that are paid for the whole time, whether used or not."""


@dataclass(frozen=True, slots=True)
class MachineType:
    """One kind of machine at one kind of price.

    Attributes:
        label: as the file names it.
        kind: on_demand, spot, reserved or buy.
        gpu: its cards.
        gpu_count: how many.
        instance: where it is rented.
        interconnect: between its cards.
        usd_per_hour: while it is rented; 0 for bought ones.
        depreciation: dollars a month, straight line over the lifetime.
        overhead: dollars a month whether it works or not: hosting, and the power of the machine without its cards.
        busy_gpu_hour: dollars for the power of one card for an hour of work.
        purchase: dollars for one.
        lifetime: months.
        residual: share of the price left after them.
        most: at most so many, or None.
        source: of the price.
        date: of the price; None where the source has none.
        age_days: of the price today, or None.
    """

    label: str
    kind: str
    gpu: Gpu
    gpu_count: int
    instance: Instance | None
    interconnect: str | None
    usd_per_hour: float = 0.0
    depreciation: float = 0.0
    overhead: float = 0.0
    busy_gpu_hour: float = 0.0
    purchase: float = 0.0
    lifetime: int = 0
    residual: float = 0.0
    most: int | None = None
    source: str = ""
    date: str | None = None
    age_days: int | None = None

    @property
    def monthly(self) -> float:
        """Dollars for a month of one machine that is on all the time, without the power of working cards."""
        return self.usd_per_hour * HOURS_PER_MONTH + self.depreciation + self.overhead

    @property
    def key(self) -> str:
        """What decides whether and how fast a workload runs on it, whatever it costs."""
        return f"{self.gpu.id} x {self.gpu_count} {self.interconnect}"


@dataclass(frozen=True, slots=True)
class Market:
    """All machines, and what was left out."""

    machines: tuple[MachineType, ...]
    notes: tuple[str, ...]


def market(hardware: Hardware, today: date, extra: Sequence[Offer] = ()) -> Market:
    """Machines with prices. `extra`: the user's own prices, which win over bundled ones. Raises UnknownHardwareError."""
    notes: list[str] = []
    machines: list[MachineType] = []
    for name in hardware.rent:
        machines += _rented(name, today, extra, notes)
    machines += [_reserved(reserved, today) for reserved in hardware.reserved]
    machines += [owned_machine(owned, today) for owned in hardware.buy]
    for machine in machines:
        if machine.age_days is not None and machine.age_days > STALE_DAYS:
            notes.append(f"the price of {machine.label} is {machine.age_days} days old; ask for a new one")
        elif machine.age_days is not None and machine.age_days < 0:
            notes.append(f"the price of {machine.label} is dated in the future ({machine.date}); check its date")
    return Market(tuple(machines), tuple(notes))


def _rented(name: str, today: date, extra: Sequence[Offer], notes: list[str]) -> list[MachineType]:
    """One instance, or for a GPU its cheapest instance of each size."""
    own = [offer for offer in extra if offer.instance.id.lower() == name.strip().lower()]
    found = own[0].instance if own else resolve(name)
    if isinstance(found, Instance):
        known = own or offers(instance_id=found.id)
        groups = [known]
    else:
        known = [*offers(found.id), *(offer for offer in extra if offer.instance.gpu == found.id)]
        counts = sorted({offer.instance.gpu_count for offer in known})
        groups = [[offer for offer in known if offer.instance.gpu_count == count] for count in counts]
    machines = []
    for kind in (ON_DEMAND, SPOT):
        prices = [price for price in (cheapest(group, 1, kind, today) for group in groups) if price]
        for price in prices:
            instance = price.offer.instance
            machines.append(
                MachineType(
                    label=name,
                    kind=kind,
                    gpu=load_gpus()[instance.gpu],
                    gpu_count=instance.gpu_count,
                    instance=instance,
                    interconnect=instance.interconnect,
                    usd_per_hour=float(price.usd_per_hour),
                    source=price.offer.source,
                    date=price.offer.date,
                    age_days=price.age_days,
                )
            )
        if not prices:
            notes.append(f"no {kind.replace('_', ' ')} price of the last 18 months is known for {name}; give one with --prices")
    return machines


def _reserved(reserved: Reserved, today: date) -> MachineType:
    instance = find_instance(reserved.instance)
    return MachineType(
        label=reserved.instance,
        kind=RESERVED,
        gpu=load_gpus()[instance.gpu],
        gpu_count=instance.gpu_count,
        instance=instance,
        interconnect=instance.interconnect,
        usd_per_hour=float(reserved.price),
        most=reserved.max,
        source=reserved.source,
        date=reserved.date,
        age_days=_age(reserved.date, today),
    )


def owned_machine(owned: Owned, today: date) -> MachineType:
    """A machine to buy: written off straight over its lifetime; cards draw their rated power while they work."""
    gpu = find_gpu(owned.gpu)
    price = owned.machine_price
    source = owned.source
    if price is None:
        assert owned.host_price is not None
        assert gpu.purchase is not None
        cards = gpu.purchase_usd or Decimal(0)
        price = owned.host_price + owned.gpus * cards
        source = f"{owned.gpus} cards at {cards} USD, the launch price ({gpu.purchase.source.title}); host: {owned.source}"
    card_watts = gpu.tdp_watts or 0
    kilowatts = (owned.host_power + owned.gpus * card_watts) / KILO
    energy = float(owned.electricity) * owned.pue
    return MachineType(
        label=owned.name,
        kind=BUY,
        gpu=gpu,
        gpu_count=owned.gpus,
        instance=None,
        interconnect=owned.interconnect if owned.gpus > 1 else None,
        depreciation=float(price) * (1 - owned.residual) / owned.lifetime,
        overhead=float(owned.hosting) * kilowatts + owned.host_power / KILO * HOURS_PER_MONTH * energy,
        busy_gpu_hour=card_watts / KILO * energy,
        purchase=float(price),
        lifetime=owned.lifetime,
        residual=owned.residual,
        most=owned.max,
        source=source,
        date=owned.date,
        age_days=_age(owned.date, today),
    )


def _age(day: str, today: date) -> int:
    return (today - date.fromisoformat(day)).days
