"""The only place where a number of bytes, seconds or FLOPs turns into another unit, is printed or is read from text."""

import re
from decimal import Decimal

from tuneplan.planner.errors import InputError

KIB = 2**10
MIB = 2**20
GIB = 2**30
TIB = 2**40
KILO = 10**3
MEGA = 10**6
GIGA = 10**9
TERA = 10**12
SECONDS_PER_HOUR = 3600

_BYTE_UNITS = {
    "b": 1,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": TIB,
    "kb": KILO,
    "mb": MEGA,
    "gb": GIGA,
    "tb": TERA,
}
_TIME_UNITS = {"s": 1, "min": 60, "h": SECONDS_PER_HOUR, "d": 24 * SECONDS_PER_HOUR}
_COUNT_UNITS = {"": 1, "k": KILO, "m": MEGA, "b": GIGA, "t": TERA}


def parse_bytes(text: str) -> int:
    """Bytes of a text such as `24GiB`, `80 GB` or `512MiB`; a unit is required. Raises InputError."""
    match = re.fullmatch(r"\s*([0-9][0-9_.eE+]*)\s*([a-zA-Z]+)\s*", text)
    factor = _BYTE_UNITS.get(match.group(2).lower()) if match else None
    if match is None or factor is None:
        raise InputError(f"{text!r} is not a size in bytes; write a number and a unit, such as 24GiB or 80GB")
    return _positive(match.group(1), factor, text, "a size in bytes")


def parse_seconds(text: str) -> float:
    """Seconds of a time such as `90s`, `10min` or `1.5h`; a unit is required. Raises InputError."""
    match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*([a-zA-Z]+)\s*", text)
    factor = _TIME_UNITS.get(match.group(2).lower()) if match else None
    if match is None or factor is None:
        raise InputError(f"{text!r} is not a time; write a number and a unit, such as 90s, 10min or 1.5h")
    return float(match.group(1)) * factor


def parse_count(text: str) -> int:
    """A count such as `10M`, `2.5B` or `300000` (decimal suffixes k, M, B, T). Raises InputError."""
    match = re.fullmatch(r"\s*([0-9][0-9_.eE+]*)\s*([kKmMbBtT]?)\s*", text)
    if match is None:
        raise InputError(f"{text!r} is not a count; write a positive number, such as 300000, 10M or 2.5B")
    return _positive(match.group(1), _COUNT_UNITS[match.group(2).lower()], text, "a count")


def _positive(digits: str, factor: int, text: str, what: str) -> int:
    try:
        value = Decimal(digits.replace("_", "")) * factor
    except ArithmeticError:
        raise InputError(f"{text!r} is not {what}; write a number, such as 24GiB or 10M") from None
    if not 1 <= value <= 10**18:
        raise InputError(f"{text!r} is not a sensible amount; it must be between 1 and 10^18")
    return int(value)


def format_gib(size_bytes: int) -> str:
    """Bytes as GiB: `13.5 GiB`, with MiB below one tenth and bytes below one MiB."""
    if abs(size_bytes) < MIB:
        return f"{size_bytes} B"
    if abs(size_bytes) < GIB // 10:
        return f"{size_bytes / MIB:.1f} MiB"
    return f"{size_bytes / GIB:.2f} GiB" if abs(size_bytes) < 100 * GIB else f"{size_bytes / GIB:.1f} GiB"


def format_count(count: float) -> str:
    """A count with a decimal suffix: `68.98B`, `103.55M`, `4096`."""
    for factor, suffix in ((TERA, "T"), (GIGA, "B"), (MEGA, "M")):
        if count >= factor:
            return f"{count / factor:.2f}{suffix}"
    return f"{count:,.0f}"


def format_seconds(seconds: float) -> str:
    """Seconds as a person would say them: `85 ms`, `2.4 s`, `3.1 min`, `6.2 h`, `3.0 days`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 2 * SECONDS_PER_HOUR:
        return f"{seconds / 60:.1f} min"
    if seconds < 72 * SECONDS_PER_HOUR:
        return f"{seconds / SECONDS_PER_HOUR:.1f} h"
    return f"{seconds / (24 * SECONDS_PER_HOUR):.1f} days"


def format_usd(amount: Decimal) -> str:
    """US dollars with cents: `$12.40`, whole dollars from a thousand on."""
    return f"${amount:,.2f}" if amount < 1000 else f"${amount:,.0f}"
