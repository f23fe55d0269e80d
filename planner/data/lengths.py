"""Lengths of the sequences of a data set: a histogram, read from data or drawn from a named distribution."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from tuneplan.planner.errors import InputError, UnknownNameError

LONGEST = 2**24
QUANTILES = 10_000
"""A distribution stands for so many sequences of equal chance."""
_CALL = re.compile(r"\s*(\w+)\s*\(([^()]*)\)\s*")
_NORMAL = NormalDist()
_P99 = _NORMAL.inv_cdf(0.99)


@dataclass(frozen=True, slots=True)
class Lengths:
    """How many sequences have how many tokens.

    Attributes:
        tokens: distinct lengths, rising.
        counts: sequences of each.
        source: where they come from, in words.
        notes: what was assumed or left out.
    """

    tokens: "np.ndarray"
    counts: "np.ndarray"
    source: str
    notes: tuple[str, ...] = ()

    @property
    def sequences(self) -> int:
        """All of them."""
        return int(self.counts.sum())

    @property
    def total(self) -> int:
        """Tokens of all of them."""
        return int((self.tokens * self.counts).sum())

    def cut(self, longest: int) -> "Lengths":
        """Longer ones truncated."""
        kept = np.minimum(self.tokens, longest)
        tokens, where = np.unique(kept, return_inverse=True)
        counts = np.zeros(len(tokens), dtype=np.int64)
        np.add.at(counts, where, self.counts)
        return Lengths(tokens, counts, self.source, self.notes)

    def quantile(self, share: float) -> int:
        """The length that a share of the sequences does not exceed."""
        return int(self.tokens[np.searchsorted(np.cumsum(self.counts), share * self.sequences)])


def of_counts(counts: Mapping[int, int], source: str, notes: tuple[str, ...] = ()) -> Lengths:
    """A histogram as lengths. Raises InputError where it holds no sequence."""
    if not counts:
        raise InputError(f"{source} holds no sequence with a token in it; give data to train on")
    tokens = np.array(sorted(counts), dtype=np.int64)
    return Lengths(tokens, np.array([counts[int(n)] for n in tokens], dtype=np.int64), source, notes)


def distribution(text: str) -> Lengths | None:
    """Lengths of a short form; None where the text has not the shape of one.

    constant(tokens=N); uniform(low=, high=); normal(mean=, std=); lognormal(mean=, p99=) or lognormal(median=, p99=);
    percentiles(p0=, p50=, p90=, p100=, ...), with straight lines between them. Each stands for QUANTILES sequences at equally
    likely quantiles, rounded to whole tokens, at least 1.

    Raises:
        InputError: an unknown name or option, or values that no such distribution has.
    """
    match = _CALL.fullmatch(text)
    if match is None:
        return None
    name, options = match[1], _options(text, match[2])
    if name not in _FORMS:
        raise UnknownNameError("distribution", name, _FORMS, "plan estimate --help")
    shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
    try:
        values = _FORMS[name](shares, options)
    except KeyError as error:
        raise InputError(f"--lengths {text!r}: {name} needs {error.args[0]}; write {_EXAMPLES[name]}") from None
    if options:
        raise InputError(f"--lengths {text!r}: {name} has no option {next(iter(options))}; write {_EXAMPLES[name]}")
    if not np.isfinite(values).all() or values.max() > LONGEST:
        raise InputError(f"--lengths {text!r} gives sequences of more than {LONGEST} tokens; use shorter ones")
    tokens, counts = np.unique(np.maximum(np.rint(values), 1).astype(np.int64), return_counts=True)
    return Lengths(tokens, counts, f"{text.strip()}, {QUANTILES} equally likely quantiles")


def _options(text: str, inside: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for piece in filter(None, (piece.strip() for piece in inside.split(","))):
        name, separator, value = (part.strip() for part in piece.partition("="))
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not separator or not 0 <= number < math.inf:
            raise InputError(
                f"--lengths {text[:80]!r}: {piece[:40]!r} is not a name and a number of tokens; write such as p99=4096"
            )
        if name in found:
            raise InputError(f"--lengths {text[:80]!r} gives {name} twice; give it once")
        found[name] = number
    return found


def _constant(shares: "np.ndarray", options: dict[str, float]) -> "np.ndarray":
    return np.full(len(shares), options.pop("tokens"))


def _uniform(shares: "np.ndarray", options: dict[str, float]) -> "np.ndarray":
    low, high = options.pop("low"), options.pop("high")
    if low > high:
        raise InputError(f"--lengths uniform: low={low:g} is above high={high:g}; exchange them")
    return low + shares * (high - low)


def _normal(shares: "np.ndarray", options: dict[str, float]) -> "np.ndarray":
    mean, std = options.pop("mean"), options.pop("std")
    return mean + std * _scores(shares)


def _lognormal(shares: "np.ndarray", options: dict[str, float]) -> "np.ndarray":
    """The mean is exp(mu + sigma^2 / 2), the median exp(mu), and p99 exp(mu + 2.326 sigma)."""
    if "median" in options:
        median, p99 = options.pop("median"), options.pop("p99")
        if not 0 < median <= p99:
            raise InputError(f"--lengths lognormal: p99={p99:g} must be median={median:g} or more, and both above 0")
        mu, sigma = math.log(median), math.log(p99 / median) / _P99
    else:
        mean, p99 = options.pop("mean"), options.pop("p99")
        inside = _P99**2 - 2 * math.log(p99 / mean) if 0 < mean <= p99 else -1.0
        if inside < 0:
            most = math.exp(_P99**2 / 2)
            raise InputError(
                f"--lengths lognormal: no such distribution has mean={mean:g} and p99={p99:g}; p99 is from 1 to {most:.2f} times "
                "the mean; give median= instead, or percentiles(...)"
            )
        sigma = _P99 - math.sqrt(inside)
        mu = math.log(mean) - sigma**2 / 2
    return np.exp(mu + sigma * _scores(shares))


def _percentiles(shares: "np.ndarray", options: dict[str, float]) -> "np.ndarray":
    points = []
    for name in list(options):
        text = name.removeprefix("p")
        if not name.startswith("p") or not text.replace(".", "", 1).isdigit() or float(text) > 100:
            continue
        points.append((float(text) / 100, options.pop(name)))
    points.sort()
    if len(points) < 2 or points[-1][0] < 1:
        raise KeyError("two percentiles at least, and p100, the longest")
    values = [value for _, value in points]
    if values != sorted(values):
        raise InputError("--lengths percentiles: a higher percentile has a lower value; check the numbers")
    if points[0][0] > 0:
        points.insert(0, (0.0, min(1.0, values[0])))
    values_at: np.ndarray = np.interp(shares, [share for share, _ in points], [value for _, value in points])
    return values_at


def _scores(shares: "np.ndarray") -> "np.ndarray":
    return np.array([_NORMAL.inv_cdf(float(share)) for share in shares])


_FORMS = {"constant": _constant, "uniform": _uniform, "normal": _normal, "lognormal": _lognormal, "percentiles": _percentiles}
_EXAMPLES = {
    "constant": "constant(tokens=1024)",
    "uniform": "uniform(low=100, high=2000)",
    "normal": "normal(mean=800, std=200)",
    "lognormal": "lognormal(mean=600, p99=4000)",
    "percentiles": "percentiles(p50=400, p90=1500, p100=8000)",
}
