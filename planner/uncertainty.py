"""How far an estimate of reserved memory may be off, from the runs that others published, and the margin that follows.

`reserved_errors.csv` beside this file holds, for every published peak of reserved memory whose run is described well enough to
be estimated, what was estimated and what was measured (docs/accuracy.md has the tables). The logarithm of measured over estimated
is taken as normal with unknown mean and variance, so that of the next run follows Student's t: a prediction interval (Hahn,
Meeker 1991, Statistical Intervals, section 4.7).

Not counted: what is outside the allocator (`runtime_bytes` states its own range), sharded models, other stacks. Rows of
one source are not independent, so the interval is narrower than it would be with as many sources.
"""

import csv
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist, mean, stdev

from tuneplan.planner.device_memory import DEFAULT_OOM_CHANCE
from tuneplan.planner.errors import DataFileError, InputError

ROWS = Path(__file__).with_name("reserved_errors.csv")
FEWEST_ROWS = 8


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a process's device memory lies: with `chance` above `high_bytes`, and with as much below `low_bytes`."""

    low_bytes: int
    high_bytes: int
    chance: float

    def to_json(self) -> dict[str, object]:
        """As a JSON object."""
        return {"device_bytes": [self.low_bytes, self.high_bytes], "chance_above": self.chance, "chance_below": self.chance}


@cache
def log_ratios() -> tuple[float, ...]:
    """log(measured / estimated) of every published row. Raises DataFileError for a broken file."""
    try:
        with ROWS.open(encoding="utf-8", newline="") as file:
            rows = tuple(math.log(int(r["measured_bytes"]) / int(r["estimated_bytes"])) for r in csv.DictReader(file))
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise DataFileError(f"The published errors {ROWS} are broken: {error!r}. Reinstall tuneplan.") from error
    if len(rows) < FEWEST_ROWS:
        raise DataFileError(f"The published errors {ROWS} hold {len(rows)} rows; {FEWEST_ROWS} are needed. Reinstall tuneplan.")
    return rows


def student_t(chance: float, degrees: int) -> float:
    """The value that Student's t exceeds with a chance, for 5 and more degrees of freedom.

    Abramowitz, Stegun 1964, formula 26.7.5: an expansion in the normal quantile, within 0.3 % for chances from 0.005.
    """
    z = NormalDist().inv_cdf(1 - chance)
    z3, z5, z7 = z**3, z**5, z**7
    return (
        z
        + (z3 + z) / (4 * degrees)
        + (5 * z5 + 16 * z3 + 3 * z) / (96 * degrees**2)
        + (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / (384 * degrees**3)
    )


def factor(chance: float) -> float:
    """Measured over estimated that the next run exceeds with a chance. Raises InputError for a chance outside 0.001 to 0.5."""
    if not 0.001 <= chance <= 0.5:
        raise InputError(f"oom-chance {chance} cannot be judged from {len(log_ratios())} published runs; use 0.001 to 0.5")
    return _factor(chance)


def _factor(chance: float) -> float:
    rows = log_ratios()
    count = len(rows)
    quantile = student_t(chance, count - 1) if chance <= 0.5 else -student_t(1 - chance, count - 1)
    return math.exp(mean(rows) + quantile * stdev(rows) * math.sqrt(1 + 1 / count))


def interval(reserved_bytes: int, runtime_bytes: int = 0, chance: float = DEFAULT_OOM_CHANCE) -> Interval:
    """The two-sided interval around an estimate of reserved memory, with what is outside the allocator added to both ends.

    Raises InputError as `factor` does.
    """
    low, high = reserved_bytes * _factor(1 - chance), reserved_bytes * factor(chance)
    return Interval(int(low) + runtime_bytes, math.ceil(high) + runtime_bytes, chance)


def margin(chance: float = DEFAULT_OOM_CHANCE) -> float:
    """The share of a card to keep free, so that a plan that fits runs out of memory with that chance at most, in [0, 1).

    Raises InputError as `factor` does.
    """
    return max(0.0, 1 - 1 / factor(chance))
