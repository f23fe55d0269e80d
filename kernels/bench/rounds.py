"""Seconds of interleaved rounds, and what a ratio of two of them says beside the noise of a thing against itself.

Contestants run one after another within a round, so that a clock that drifts meets all alike; the first contestant runs a second
time in each round under another name, and what that pair differs by is noise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

ROUNDS = 7
AGAIN = " (again)"
"""Ends the name of the second run of the first contestant."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Seconds of one call.

    Args:
        median: of the rounds.
        first_quartile: of the rounds.
        third_quartile: of the rounds.
        least: of the rounds.
        rounds: each round's median.
    """

    median: float
    first_quartile: float
    third_quartile: float
    least: float
    rounds: tuple[float, ...]

    @classmethod
    def of(cls, rounds: Sequence[float]) -> "Summary":
        """Of each round's seconds."""
        low, _, high = quantiles(rounds, n=4, method="inclusive") if len(rounds) > 1 else (rounds[0],) * 3
        return cls(median(rounds), low, high, min(rounds), tuple(rounds))


@dataclass(frozen=True, slots=True)
class Ratio:
    """Seconds of one contestant over those of another.

    Args:
        value: median over the rounds.
        noise: the factor that a contestant was off from itself by, at worst.
        verdict: "slower", "faster", or "no difference" within the noise.
    """

    value: float
    noise: float
    verdict: str

    @classmethod
    def of(cls, rounds: Sequence[float], reference: Sequence[float], again: Sequence[float]) -> "Ratio":
        """Of a contestant to the reference, whose second run is `again`; round by round."""
        value = median(mine / its for mine, its in zip(rounds, reference, strict=True))
        noise = max(max(one / other, other / one) for one, other in zip(reference, again, strict=True))
        inside = 1 / noise <= value <= noise
        return cls(value, noise, "no difference" if inside else "slower" if value > 1 else "faster")


def interleaved(contestants: Mapping[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, those of the first one's second run under its name with AGAIN.

    Args:
        contestants: run one round of their calls and give the seconds of one call.
        rounds: how many; each begins with another contestant.
    """
    if not contestants:
        return {}
    first = next(iter(contestants))
    order = [*contestants.items(), (first + AGAIN, contestants[first])]
    found: dict[str, list[float]] = {name: [] for name, _ in order}
    for number in range(rounds):
        shift = number % len(order)
        for name, run in order[shift:] + order[:shift]:
            found[name].append(run())
    return found
