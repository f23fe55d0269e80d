"""Interleaved rounds, their summary, and ratios beside the noise of a contestant against itself."""

from collections.abc import Callable

import pytest

from tuneplan.kernels.bench.rounds import AGAIN, Ratio, Summary, interleaved


def test_contestants_take_turns() -> None:
    """Each runs once a round, the first one twice, and each round begins with another."""
    order: list[str] = []

    def contestant(name: str) -> Callable[[], float]:
        def run() -> float:
            order.append(name)
            return float(len(order))

        return run

    found = interleaved({name: contestant(name) for name in ("a", "b")}, rounds=4)
    assert {"a": 4, "b": 4, f"a{AGAIN}": 4} == {name: len(rounds) for name, rounds in found.items()}
    assert ["a", "b", "a", "b", "a", "a", "a", "a", "b", "a", "b", "a"] == order
    assert {} == interleaved({})


def test_summary() -> None:
    """Median, quartiles and least of the rounds; a single round is all of them."""
    summary = Summary.of([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (3.0, 2.0, 4.0, 1.0) == (summary.median, summary.first_quartile, summary.third_quartile, summary.least)
    assert (7.0, 7.0, 7.0, 7.0) == (
        (one := Summary.of([7.0])).median,
        one.first_quartile,
        one.third_quartile,
        one.least,
    )


@pytest.mark.parametrize(
    ("rounds", "again", "value", "noise", "verdict"),
    [
        ([1.2, 1.2, 1.2], [1.0, 1.1, 1.0], 1.2, 1.1, "slower"),
        ([1.2, 1.2, 1.2], [1.0, 1.3, 1.0], 1.2, 1.3, "no difference"),
        ([0.8, 0.8, 0.8], [1.0, 1.1, 1.0], 0.8, 1.1, "faster"),
        ([0.8, 0.8, 0.8], [1.0, 0.5, 1.0], 0.8, 2.0, "no difference"),
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], 1.0, 1.0, "no difference"),
    ],
)
def test_a_ratio_within_the_noise_is_no_difference(
    rounds: list[float], again: list[float], value: float, noise: float, verdict: str
) -> None:
    """The noise is what the reference was off from itself at worst, in either direction."""
    ratio = Ratio.of(rounds, [1.0, 1.0, 1.0], again)
    assert (value, noise, verdict) == (ratio.value, ratio.noise, ratio.verdict)
