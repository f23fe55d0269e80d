"""Hours that are paid for beside training: start-up, evaluation, checkpoints, interruptions."""

import random
from math import inf

import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.units import GIGA, SECONDS_PER_HOUR
from tuneplan.planner.wall_clock import Overheads, WallClock, wall_clock


def run(overheads: Overheads = Overheads(), spot: bool = False, updates: int = 1000) -> WallClock:  # noqa: B008
    """A run of updates of ten seconds with checkpoints of 20 GB."""
    return wall_clock(10.0, updates, 1e-4, 20 * GIGA, overheads, spot)


def test_a_machine_that_stays() -> None:
    """One checkpoint at the end unless more are asked for; start-up once; evaluation by its tokens."""
    assert run() == WallClock(10_000.0, checkpoints=20.0, checkpoint_steps=1000)
    found = run(Overheads(startup_seconds=300, evaluation_tokens=10**6, evaluations=3, save_steps=250))
    assert (found.training, found.startup, found.evaluation, found.checkpoints) == (10_000.0, 300, 300.0, 80.0)
    assert 10_680.0 == found.total


def test_rare_interruptions_cost_nothing() -> None:
    """The limit of a machine that is never taken away."""
    rare = run(Overheads(startup_seconds=60, interruption_hours=1e9, save_steps=100), spot=True)
    assert 0 == pytest.approx(rare.interruptions, abs=0.1)


def test_more_interruptions_cost_more() -> None:
    """Time grows as machines are taken away more often; without a rate the assumption is said."""
    costs = [run(Overheads(60, interruption_hours=h, save_steps=60), spot=True).interruptions for h in (48, 24, 4, 1)]
    assert costs == sorted(costs)
    assert costs[0] > 0
    assert ["interruption", "restart"] == [note.split()[1].replace("of", "restart") for note in run(spot=True).notes]


def test_the_interval_is_the_best_one() -> None:
    """Twice and half of the interval that is chosen without a wish are slower."""
    best = run(Overheads(60, interruption_hours=2), spot=True, updates=100_000)
    for factor in (0.5, 2):
        steps = round(best.checkpoint_steps * factor)
        other = run(Overheads(60, interruption_hours=2, save_steps=steps), spot=True, updates=100_000)
        assert other.total > best.total


def test_expected_time_is_that_of_a_simulation() -> None:
    """The formula against 400 simulated runs under random interruptions, within three standard errors."""
    mean, restart, interval, saving = 2 * SECONDS_PER_HOUR, 600.0, 1800.0, 20.0
    found = wall_clock(10.0, 1800, 0.0, 20 * GIGA, Overheads(restart, save_steps=180, interruption_hours=2), spot=True)
    generator = random.Random(0)
    totals = []
    for _ in range(400):
        clock, done = 0.0, 0
        while done < 10:
            needed, lived = interval + saving, generator.expovariate(1 / mean)
            if lived >= needed:
                clock, done = clock + needed, done + 1
                continue
            clock += lived
            while (lived := generator.expovariate(1 / mean)) < restart:
                clock += lived
            clock += restart
        totals.append(clock)
    average = sum(totals) / len(totals)
    error = (sum((t - average) ** 2 for t in totals) / len(totals) ** 2) ** 0.5
    assert found.total - found.startup == pytest.approx(average, abs=3 * error)


def test_a_machine_that_never_lasts_never_ends() -> None:
    """Work that cannot be done between two interruptions has no end."""
    assert inf == run(Overheads(interruption_hours=0.001), spot=True).interruptions


@pytest.mark.parametrize(
    ("overheads", "message"),
    [
        (Overheads(startup_seconds=-1), "startup -1"),
        (Overheads(interruption_hours=inf), "interruption-hours inf"),
        (Overheads(evaluation_tokens=-5), "eval-tokens -5"),
        (Overheads(save_steps=-1), "save-steps -1"),
    ],
)
def test_what_cannot_be(overheads: Overheads, message: str) -> None:
    """Each is named as on the command line."""
    with pytest.raises(InputError, match=message):
        overheads.check()
