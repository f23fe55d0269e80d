"""Searches over parts: every candidate of a space through the ledger, and those that no other one betters.

Published searches (AutoPEFT, NOAH, S3PET) look for the score on a task. The ledger knows no score: it gives what each candidate
trains, holds and takes, and those for which nothing else trains as much with as little. Quality is not predicted.
"""

from dataclasses import dataclass, replace
from fractions import Fraction

from tuneplan.planner.errors import InputError
from tuneplan.planner.memory import step_memory
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.methods.method import Method
from tuneplan.planner.methods.spaces import Space
from tuneplan.planner.models.network import build
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.request import Request
from tuneplan.planner.timing.request_time import time_of
from tuneplan.planner.timing.work import network_work
from tuneplan.planner.training.settings import Settings


@dataclass(frozen=True, slots=True)
class Candidate:
    """A method of a space.

    Attributes:
        method: its parts.
        trainable: weights that are trained.
        peak_bytes: most live bytes of a training step.
        flops: matrix-multiply FLOPs of a micro-batch, forward, recomputation and backward.
        seconds: of a step; None without a card.
        mergeable: whether it folds into the base.
    """

    method: Method
    trainable: int
    peak_bytes: int
    flops: int
    seconds: float | None
    mergeable: bool

    @property
    def duration(self) -> float:
        """What stands for time: seconds, or FLOPs where no card is known."""
        return float(self.flops) if self.seconds is None else self.seconds

    def betters(self, other: "Candidate") -> bool:
        """Whether it trains as much with as little memory and time, and is better in one of them."""
        mine = (-self.trainable, self.peak_bytes, self.duration)
        theirs = (-other.trainable, other.peak_bytes, other.duration)
        return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        request: the common configuration.
        space: what was searched.
        best: candidates within the budget that no other one betters, the one that trains least first.
        tried: candidates that fit the model.
        over_budget: of those, how many are above a limit.
        misfits: candidates that the model or the settings refuse, and why, each reason once.
    """

    request: Request
    space: Space
    best: tuple[Candidate, ...]
    tried: int
    over_budget: int
    misfits: tuple[tuple[str, str], ...]


def search_methods(request: Request, space: Space, most_trainable: int | None, most_bytes: int | None) -> Found:
    """Walk the space under one configuration.

    Args:
        request: model, settings, optimizer and card; its method gives way to each candidate.
        space: the candidates.
        most_trainable: budget of trained weights, or None.
        most_bytes: budget of the step's peak [bytes], or None.

    Raises:
        InputError: a part of the space does not exist, or no candidate fits the model.
    """
    fitting: list[Candidate] = []
    misfits: dict[str, str] = {}
    for method in space.candidates():
        candidate = _evaluate(replace(request, method=method))
        if isinstance(candidate, Candidate):
            fitting.append(candidate)
        else:
            misfits.setdefault(str(candidate), method.name)
    if not fitting:
        reason = next(iter(misfits), "it has no candidates")
        raise InputError(f"no candidate of the space fits {request.spec.id}: {reason}")
    within = [c for c in fitting if _within(c, most_trainable, most_bytes)]
    best = [c for c in within if not any(other.betters(c) for other in within)]
    best.sort(key=lambda c: (c.trainable, c.peak_bytes))
    reasons = tuple([(name, reason) for reason, name in misfits.items()])
    return Found(request, space, tuple(best), len(fitting), len(fitting) - len(within), reasons)


def share_of_model(percent: Fraction, spec: ModelSpec, settings: Settings) -> int:
    """So many percent of the model's own weights."""
    whole = build(spec, parse("full"), replace(settings, gradient_checkpointing="off"))
    return int(percent * whole.total_parameters / 100)


def _within(candidate: Candidate, most_trainable: int | None, most_bytes: int | None) -> bool:
    if most_trainable is not None and candidate.trainable > most_trainable:
        return False
    return most_bytes is None or candidate.peak_bytes <= most_bytes


def _evaluate(request: Request) -> Candidate | InputError:
    """The candidate of a request, or why its method does not fit."""
    try:
        network = build(request.spec, request.method, request.settings)
    except InputError as error:
        return error
    work = network_work(network, request.settings)
    peak = step_memory(network, request.settings, request.optimizer, request.sharding).peak.peak_bytes
    return Candidate(
        method=request.method,
        trainable=network.trainable_parameters,
        peak_bytes=peak,
        flops=int(work.forward.flops + work.recompute.flops + work.backward.flops),
        seconds=time_of(request, network, work).seconds if request.gpu is not None else None,
        mergeable=request.method.mergeable,
    )
