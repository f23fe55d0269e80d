"""From the seconds of a step to the hours that are paid for: start-up, evaluation, checkpoints, interruptions.

Interruptions follow Daly 2006, A higher order estimate of the optimum checkpoint interval for restart dumps (total wall clock
time under exponentially distributed failures); where the user names no interval, Young 1974, A first order approximation to the
optimum checkpoint interval. Not counted: data loading, waiting for a machine, logging, uploads to other places than the disk.
"""

from dataclasses import dataclass
from math import exp, expm1, inf, sqrt
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.units import GIGA, SECONDS_PER_HOUR

DISK_BYTES_PER_SECOND = GIGA
"""Assumed where the user does not say: a network volume or NVMe disk writes about 1 GB/s."""

HOURS_BETWEEN_INTERRUPTIONS = 24.0
"""Assumed for spot machines where the user does not say: providers publish no rate by card, and it changes by the hour."""

RESTART_SECONDS = 600.0
"""Assumed for spot machines where no start-up time is given: a new machine, the software, the weights."""

LONGEST_EXPONENT = 50.0


@dataclass(frozen=True, slots=True)
class Overheads:
    """What a run does beside training steps.

    Attributes:
        startup_seconds: machine, software, weights, warm-up, once a run and once an interruption; 0 is not counted.
        evaluation_tokens: tokens of one evaluation; 0 for none.
        evaluations: how many.
        save_steps: steps between two checkpoints; 0 for one at the end (on spot machines: the best interval).
        disk_bytes_per_second: at which a checkpoint is written.
        interruption_hours: mean hours between two interruptions of a spot machine; 0 for the assumed mean.
    """

    startup_seconds: float = 0.0
    evaluation_tokens: int = 0
    evaluations: int = 1
    save_steps: int = 0
    disk_bytes_per_second: int = DISK_BYTES_PER_SECOND
    interruption_hours: float = 0.0

    @property
    def evaluates(self) -> bool:
        """Whether it evaluates at all."""
        return self.evaluations * self.evaluation_tokens > 0

    def check(self) -> None:
        """Raise InputError for what cannot be."""
        for name, value in (("startup", self.startup_seconds), ("interruption-hours", self.interruption_hours)):
            if not 0 <= value < inf:
                raise InputError(f"{name} {value} is not a time; use 0 or more")
        for name, count in (("eval-tokens", self.evaluation_tokens), ("evaluations", self.evaluations)):
            if count < 0:
                raise InputError(f"{name} {count} is below nothing; use 0 or more")
        if self.save_steps < 0:
            raise InputError(f"save-steps {self.save_steps} is not a number of steps; use 1 or more, or 0 for one checkpoint")


NO_OVERHEADS = Overheads()


@dataclass(frozen=True, slots=True)
class WallClock:
    """Seconds that a machine is paid for, by what it does.

    Attributes:
        training: all updates.
        startup: the first start.
        evaluation: all evaluations, a forward each.
        checkpoints: writing them.
        interruptions: work done again and restarts, expected; 0 on machines that stay.
        checkpoint_steps: updates between two checkpoints.
        notes: what was assumed.
    """

    training: float
    startup: float = 0.0
    evaluation: float = 0.0
    checkpoints: float = 0.0
    interruptions: float = 0.0
    checkpoint_steps: int = 0
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """All of it."""
        return self.training + self.startup + self.evaluation + self.checkpoints + self.interruptions

    def to_json(self) -> dict[str, object]:
        """Every part, in seconds."""
        return {
            "training_seconds": self.training,
            "startup_seconds": self.startup,
            "evaluation_seconds": self.evaluation,
            "checkpoint_seconds": self.checkpoints,
            "interruption_seconds": self.interruptions,
            "total_seconds": self.total,
            "checkpoint_steps": self.checkpoint_steps,
            "notes": list(self.notes),
        }


def wall_clock(
    step_seconds: float, updates: int, forward_seconds_per_token: float, saved_bytes: int, overheads: Overheads, spot: bool
) -> WallClock:
    """The whole run.

    Args:
        step_seconds: of one update.
        updates: of the run.
        forward_seconds_per_token: of a forward on all ranks together, for evaluation.
        saved_bytes: of one checkpoint, optimizer states included.
        overheads: what else the run does.
        spot: the machine may be taken away.
    """
    training = updates * step_seconds
    evaluation = overheads.evaluations * overheads.evaluation_tokens * forward_seconds_per_token
    saving = saved_bytes / overheads.disk_bytes_per_second
    notes: tuple[str, ...] = ()
    if not spot:
        steps = overheads.save_steps or updates
        count = -(-updates // steps)
        return WallClock(training, overheads.startup_seconds, evaluation, count * saving, 0.0, steps)
    mean = (overheads.interruption_hours or HOURS_BETWEEN_INTERRUPTIONS) * SECONDS_PER_HOUR
    restart = overheads.startup_seconds or RESTART_SECONDS
    if not overheads.interruption_hours:
        notes += (f"an interruption every {HOURS_BETWEEN_INTERRUPTIONS:g} hours is assumed (--interruption-hours)",)
    if not overheads.startup_seconds:
        notes += (f"a restart of {RESTART_SECONDS / 60:g} minutes is assumed (--startup)",)
    best = max(1, round(sqrt(2 * saving * mean) / step_seconds)) if step_seconds else 1
    steps = min(overheads.save_steps or best, updates)
    count = -(-updates // steps)
    lost = _expected(training + evaluation, steps * step_seconds, saving, restart, mean) - training - evaluation - count * saving
    return WallClock(training, overheads.startup_seconds, evaluation, count * saving, max(0.0, lost), steps, notes)


def run_seconds(
    step_seconds: Any, updates: int, forward_seconds_per_token: Any, saved_bytes: Any, overheads: Overheads, spot: bool
) -> Any:
    """`wall_clock(...).total` for arrays of steps, forwards and checkpoints; infinite where a step is."""
    import numpy as np

    training = updates * step_seconds
    done = overheads.evaluations * overheads.evaluation_tokens
    evaluation = done * forward_seconds_per_token if done else np.zeros(())
    saving = saved_bytes / overheads.disk_bytes_per_second
    if not spot:
        count = -(-updates // (overheads.save_steps or updates))
        return training + overheads.startup_seconds + evaluation + count * saving
    mean = (overheads.interruption_hours or HOURS_BETWEEN_INTERRUPTIONS) * SECONDS_PER_HOUR
    restart = overheads.startup_seconds or RESTART_SECONDS
    best = np.maximum(1, np.rint(np.sqrt(2 * saving * mean) / step_seconds))
    steps = np.minimum(overheads.save_steps or best, updates)
    count = np.ceil(updates / steps)
    interval = steps * step_seconds
    work = training + evaluation
    if restart / mean > LONGEST_EXPONENT:
        return np.full(np.broadcast_shapes(np.shape(work), np.shape(saving)), inf)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = (
            mean * exp(restart / mean) * np.expm1(np.minimum((interval + saving) / mean, LONGEST_EXPONENT)) * work / interval
        )
        lost = np.maximum(0.0, expected - work - count * saving)
    lasting = np.isfinite(work) & ((interval + saving) / mean <= LONGEST_EXPONENT)
    return np.where(lasting, work + overheads.startup_seconds + count * saving + lost, inf)


def _expected(work: float, interval: float, saving: float, restart: float, mean: float) -> float:
    """Expected seconds of `work` seconds, a checkpoint of `saving` after each `interval` (Daly 2006)."""
    if not work:
        return 0.0
    if (interval + saving) / mean > LONGEST_EXPONENT or restart / mean > LONGEST_EXPONENT:
        return inf
    return mean * exp(restart / mean) * expm1((interval + saving) / mean) * work / interval
