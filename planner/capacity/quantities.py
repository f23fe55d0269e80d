"""Amounts with units as a workloads file writes them: every reader gives a number in one unit, or says what to write.

Readers raise ValueError, which pydantic turns into a finding at its place in the file.
"""

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from tuneplan.planner.errors import InputError
from tuneplan.planner.units import KILO, SECONDS_PER_HOUR, parse_count

HOURS_PER_MONTH = 730
"""8,760 hours of a year over twelve; clouds bill a month as 730 hours."""
SECONDS_PER_MONTH = HOURS_PER_MONTH * SECONDS_PER_HOUR

_SECONDS = {
    "ms": 0.001,
    "s": 1,
    "second": 1,
    "min": 60,
    "minute": 60,
    "h": SECONDS_PER_HOUR,
    "hour": SECONDS_PER_HOUR,
    "day": 24 * SECONDS_PER_HOUR,
    "week": 7 * 24 * SECONDS_PER_HOUR,
    "month": SECONDS_PER_MONTH,
    "year": 12 * SECONDS_PER_MONTH,
}
_WORD = re.compile(r"(\$?)\s*([0-9][0-9_]{0,20}(?:\.[0-9]{1,12})?)\s*([a-zA-Z%/ ]{0,30})")
_LARGEST = 10**12


def _split(value: Any, example: str) -> tuple[Decimal, str]:
    """A number and its unit in lower case. Raises ValueError; a bare number is told that it lacks a unit."""
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        raise ValueError(f"this must be an amount, such as '{example}'")
    text = str(value).strip()
    match = _WORD.fullmatch(text)
    if match is None or (match.group(1) and match.group(3)[:3].lower() == "usd"):
        raise ValueError(f"{text[:40]!r} is not an amount; write such as '{example}'")
    number = Decimal(match.group(2).replace("_", ""))
    unit = " ".join((("usd" if match.group(1) else "") + match.group(3)).lower().split())
    if not unit:
        raise ValueError(f"{text[:40]} has no unit; write such as '{example}'")
    if number > _LARGEST:
        raise ValueError(f"{text[:40]!r} is not a sensible amount; write such as '{example}'")
    return number, unit


def _singular(word: str) -> str:
    return word[:-1] if word.endswith("s") and word[:-1] in _SECONDS else word


def seconds(value: Any) -> float:
    """Seconds of "12 hours", "500 ms" or "3 days"."""
    number, unit = _split(value, "12 hours")
    factor = _SECONDS.get(_singular(unit))
    if factor is None or number <= 0:
        raise ValueError(f"{str(value)[:40]!r} is not a time; write such as '12 hours', '500 ms' or '3 days'")
    return float(number) * factor


def months(value: Any) -> int:
    """Whole months of "12 months" or "1 year"."""
    number = seconds(value) / SECONDS_PER_MONTH
    if abs(number - round(number)) > 1e-6 or not round(number):
        raise ValueError(f"{str(value)[:40]!r} is not a whole number of months; write such as '12 months'")
    return round(number)


def per_second(value: Any) -> float:
    """Requests a second of "5/s", "300 requests/min" or "20000/day"."""
    number, unit = _split(value, "5/s")
    what, _, per = unit.partition("/")
    factor = _SECONDS.get(_singular(per.strip()))
    if factor is None or what.strip() not in ("", "request", "requests") or number <= 0:
        raise ValueError(f"{str(value)[:40]!r} is not a rate; write such as '5/s', '300 requests/min' or '20000/day'")
    return float(number) / factor


def per_month(value: Any) -> float:
    """Runs a month of "1/week" or "3 runs/month"."""
    number, unit = _split(value, "1/week")
    what, _, per = unit.partition("/")
    factor = _SECONDS.get(_singular(per.strip()))
    if factor is None or what.strip() not in ("", "run", "runs") or number <= 0:
        raise ValueError(f"{str(value)[:40]!r} is not how often; write such as '1/week' or '3 runs/month'")
    return float(number) * SECONDS_PER_MONTH / factor


def dollars(value: Any) -> Decimal:
    """US dollars of "1599 USD" or "$1599"."""
    return _money(value, "", "25000 USD")


def dollars_per_hour(value: Any) -> Decimal:
    """US dollars an hour of "12.50 USD/hour"."""
    return _money(value, "/hour", "12.50 USD/hour")


def dollars_per_kwh(value: Any) -> Decimal:
    """US dollars a kilowatt-hour of "0.13 USD/kWh"."""
    return _money(value, "/kwh", "0.13 USD/kWh")


def dollars_per_kw_month(value: Any) -> Decimal:
    """US dollars a kilowatt and month of "150 USD/kW/month"."""
    return _money(value, "/kw/month", "150 USD/kW/month")


def _money(value: Any, per: str, example: str) -> Decimal:
    number, unit = _split(value, example)
    plain = unit.replace(" ", "")
    if plain not in (f"usd{per}", f"usd{per}".replace("/hour", "/h")):
        other = "" if plain.startswith("usd") else "; convert other currencies first"
        raise ValueError(
            f"{str(value)[:40]!r} is not a price in US dollars{per.replace('/', ' a ')}; write such as '{example}'{other}"
        )
    return number


def watts(value: Any) -> float:
    """Watts of "450 W" or "1.2 kW"."""
    number, unit = _split(value, "400 W")
    if unit not in ("w", "kw"):
        raise ValueError(f"{str(value)[:40]!r} is not a power; write such as '400 W' or '1.2 kW'")
    return float(number) * (KILO if unit == "kw" else 1)


def share(value: Any) -> float:
    """A share from 0 to 1 of "80%"."""
    number, unit = _split(value, "80%")
    if unit != "%" or number > 100:
        raise ValueError(f"{str(value)[:40]!r} is not a share; write such as '80%'")
    return float(number) / 100


def growth(value: Any) -> float:
    """Growth each month of "10%/month"; "-2%/month" shrinks."""
    text = str(value).strip()
    sign = -1 if text.startswith("-") else 1
    number, unit = _split(text.removeprefix("-").removeprefix("+") if isinstance(value, str) else value, "10%/month")
    if unit.replace(" ", "") != "%/month" or not -50 <= sign * number <= 100:
        raise ValueError(f"{str(value)[:40]!r} is not a growth from -50 to 100 % a month; write such as '10%/month'")
    return sign * float(number) / 100


def tokens(value: Any) -> int:
    """Tokens of 10000000, "10M" or "10M tokens"."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("this must be a number of tokens, such as '10M'")
    try:
        return parse_count(str(value).strip().removesuffix("tokens").strip())
    except InputError as error:
        raise ValueError(str(error)) from None


def _text(example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "examples": [example]})


Seconds = Annotated[float, BeforeValidator(seconds), _text("12 hours")]
Months = Annotated[int, BeforeValidator(months), _text("12 months")]
PerSecond = Annotated[float, BeforeValidator(per_second), _text("5/s")]
PerMonth = Annotated[float, BeforeValidator(per_month), _text("1/week")]
Usd = Annotated[Decimal, BeforeValidator(dollars), _text("25000 USD")]
UsdPerHour = Annotated[Decimal, BeforeValidator(dollars_per_hour), _text("12.50 USD/hour")]
UsdPerKwh = Annotated[Decimal, BeforeValidator(dollars_per_kwh), _text("0.13 USD/kWh")]
UsdPerKwMonth = Annotated[Decimal, BeforeValidator(dollars_per_kw_month), _text("150 USD/kW/month")]
Watts = Annotated[float, BeforeValidator(watts), _text("400 W")]
Share = Annotated[float, BeforeValidator(share), _text("80%")]
Growth = Annotated[float, BeforeValidator(growth), _text("10%/month")]
Tokens = Annotated[
    int, BeforeValidator(tokens), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}], "examples": ["10M"]})
]
