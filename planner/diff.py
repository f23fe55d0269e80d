"""What a change of configuration does: peak memory, time and cost of two requests, component by component."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import date
from decimal import Decimal

from tuneplan.hardware_profiles.loader import Offer
from tuneplan.planner.cost import Price, cheapest
from tuneplan.planner.errors import InputError
from tuneplan.planner.estimate import Estimate, estimate
from tuneplan.planner.request import Request
from tuneplan.planner.units import SECONDS_PER_HOUR, format_gib, parse_bytes

MOST_PERCENT = 10_000
SMALLEST_USD = Decimal("0.000001")


@dataclass(frozen=True, slots=True)
class Limit:
    """How much more the new configuration may take: a share of the old figure, or bytes.

    Attributes:
        text: as the user wrote it.
        percent: of the old figure, or None.
        more_bytes: or None.
    """

    text: str
    percent: float | None = None
    more_bytes: int | None = None

    def allowed(self, before: float) -> float:
        """The largest new figure."""
        if self.more_bytes is not None:
            return before + self.more_bytes
        return before * (1 + (self.percent or 0.0) / 100)


def parse_limit(text: str, sizes: bool = True) -> Limit:
    """A limit such as `5%` or `500MiB`. `sizes`: whether bytes make sense. Raises InputError."""
    plain = text.strip()
    if plain.endswith("%"):
        try:
            percent = float(plain[:-1])
        except ValueError:
            percent = float("nan")
        if 0 <= percent <= MOST_PERCENT:
            return Limit(plain, percent=percent)
    elif sizes and plain in ("0", "0B"):
        return Limit(plain, more_bytes=0)
    elif sizes:
        return Limit(plain, more_bytes=parse_bytes(plain))
    raise InputError(f"{text[:60]!r} is no limit; write a share such as 5%{', or a size such as 500MiB' if sizes else ''}")


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two configurations.

    Attributes:
        name: as the user named it.
        estimate: of it.
        price: the cheapest offer for its GPUs, or None.
        usd_per_million_tokens: or None without time or price.
    """

    name: str
    estimate: Estimate
    price: Price | None
    usd_per_million_tokens: Decimal | None

    @property
    def step_seconds(self) -> float | None:
        """Of an update."""
        return self.estimate.time.seconds if self.estimate.time else None

    @property
    def tokens_per_second(self) -> float | None:
        """Of all GPUs."""
        return self.estimate.time.tokens_per_second if self.estimate.time else None

    @property
    def seconds_per_million_tokens(self) -> float | None:
        """What makes updates of different sizes comparable."""
        rate = self.tokens_per_second
        return 1e6 / rate if rate else None

    @property
    def fits(self) -> bool | None:
        """Whether it fits the card; None where none is named."""
        capacity = self.estimate.request.capacity_bytes
        return None if capacity is None else self.estimate.device_bytes <= capacity


@dataclass(frozen=True, slots=True)
class Diff:
    """Two configurations side by side.

    Attributes:
        old: before.
        new: after.
        settings: options that differ: name, old and new value.
        components: bytes at the peak of each: name, old, new; fragmentation and runtime included, so that they sum to the peak.
        phases: peak bytes of each phase: name, old, new.
        breaches: limits that the new one breaks, in words.
    """

    old: Side
    new: Side
    settings: tuple[tuple[str, object, object], ...]
    components: tuple[tuple[str, int, int], ...]
    phases: tuple[tuple[str, int, int], ...]
    breaches: tuple[str, ...]


def diff(
    old: tuple[str, Request],
    new: tuple[str, Request],
    offers: Sequence[Offer],
    today: date,
    memory_limit: Limit | None = None,
    time_limit: Limit | None = None,
) -> Diff:
    """Estimate both and compare.

    Args:
        old: name and request.
        new: name and request.
        offers: of the card, for the cost.
        today: for the age of prices.
        memory_limit: of the peak on each GPU.
        time_limit: of the time for a token.

    Raises:
        InputError: a method that does not fit its model; a time limit without a card.
    """
    sides = [_side(name, request, offers, today) for name, request in (old, new)]
    before, after = sides
    if time_limit is not None and (before.seconds_per_million_tokens is None or after.seconds_per_million_tokens is None):
        raise InputError("--max-slower needs the time of both, and no card with known rates is named; add --gpu")
    return Diff(
        before,
        after,
        _settings(before.estimate.request, after.estimate.request),
        _pairs(_components(before.estimate), _components(after.estimate)),
        _pairs(_phases(before.estimate), _phases(after.estimate)),
        tuple(_breaches(before, after, memory_limit, time_limit)),
    )


def _side(name: str, request: Request, offers: Sequence[Offer], today: date) -> Side:
    result = estimate(request)
    price = cheapest(offers, request.sharding.data_parallel, "on_demand", today)
    side = Side(name, result, price, None)
    seconds = side.seconds_per_million_tokens
    cost = None
    if price is not None and seconds is not None:
        cost = (price.usd_per_hour * Decimal(seconds) / SECONDS_PER_HOUR).quantize(SMALLEST_USD)
    return Side(name, result, price, cost)


def _components(result: Estimate) -> dict[str, int]:
    levels = {name: size for name, size in result.components.items() if name != "runtime"}
    return {**levels, "fragmentation": result.reserved_bytes - result.allocated_bytes, "runtime": result.runtime.total_bytes}


def _phases(result: Estimate) -> dict[str, int]:
    return {name: int(phase.peak_bytes) for name, phase in result.memory.phases.items()}


def _pairs(old: dict[str, int], new: dict[str, int]) -> tuple[tuple[str, int, int], ...]:
    return tuple((name, int(old.get(name, 0)), int(new.get(name, 0))) for name in dict.fromkeys([*old, *new]))


def _settings(old: Request, new: Request) -> tuple[tuple[str, object, object], ...]:
    """Options whose values differ; those of the method part by part where the parts are the same."""
    before, after = old.to_json(), new.to_json()
    names = [name for name in dict.fromkeys([*before, *after]) if name not in ("method", "method_in_full")]
    rows = [(name, before.get(name), after.get(name)) for name in names]
    first, second = old.method.parts, new.method.parts
    if [part.label for part in first] == [part.label for part in second]:
        pairs = [(a, b, f.name) for a, b in zip(first, second, strict=True) for f in fields(a)]
        rows += [(f"{a.label}.{name}", _plain(getattr(a, name)), _plain(getattr(b, name))) for a, b, name in pairs]
    else:
        rows.append(("method", old.method.name, new.method.name))
    return tuple(row for row in rows if row[1] != row[2])


def _plain(value: object) -> object:
    return ", ".join(str(item) for item in value) if isinstance(value, tuple) else value


def _breaches(old: Side, new: Side, memory: Limit | None, time: Limit | None) -> list[str]:
    texts = []
    before, after = old.estimate.device_bytes, new.estimate.device_bytes
    if memory is not None and after > memory.allowed(before):
        texts.append(
            f"the peak grows by {format_gib(after - before)} ({_share(before, after)}), more than the {memory.text} allowed"
        )
    slow, slower = old.seconds_per_million_tokens, new.seconds_per_million_tokens
    if time is not None and slow is not None and slower is not None and slower > time.allowed(slow):
        texts.append(f"a token takes {_share(slow, slower)} longer, more than the {time.text} allowed")
    if new.fits is False:
        short = after - (new.estimate.request.capacity_bytes or 0)
        texts.append(f"the new configuration does not fit: short by {format_gib(short)}")
    return texts


def _share(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.1f} %" if before else "from nothing"
