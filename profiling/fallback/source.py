"""A model's networks from traces of its real code: one program for each method and setting, kept in the user's cache.

Nothing here imports torch before something has to be traced.
"""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import click

from tuneplan.planner.cli.extras import profiling_needs
from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import Network
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.training.attention_kernel import AMPERE
from tuneplan.planner.training.optimizers import find
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling.fallback import cache
from tuneplan.profiling.fallback.flow import Flow
from tuneplan.profiling.fallback.program import FARTHEST
from tuneplan.profiling.subject import Subject

OLDER = (7, 5)
STEPS, MICRO_BATCHES = 1, 2
MOST_PROGRAMS = 8
"""Of a method and setting; the ones that were made last stay."""
POOL_SECONDS = 15.0
"""From so many seconds of tracing on, several processes share it."""
_OPTIMIZER = find("sgd")
"""Of the traces, whose updates the planner's own take the place of."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A program that is wanted: a subject, and the batch and length around which."""

    subject: Subject
    batch: int
    length: int

    @property
    def label(self) -> str:
        """For the user."""
        checkpointing = self.subject.settings.gradient_checkpointing
        return f"{self.subject.method.name}, checkpointing {checkpointing}, sequences of {self.length}"


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a subject: programs, and why there are none, by length."""

    flows: tuple[Flow, ...] = ()
    refusals: Mapping[int, str] = field(default_factory=dict)

    def covers(self, batch: int, length: int) -> bool:
        """Whether a program holds at a point."""
        return any(flow.domain.covers(batch, length) for flow in self.flows)


class TracedSource:
    """Programs of one model.

    Attributes:
        closed: nothing more is traced; what there is no program of is refused.
    """

    def __init__(self, id: str, config: ConfigReader, task: str) -> None:
        """`task`: one of tasks.TASKS, or "" for what the config says."""
        self.closed = False
        self._model = id, config, task
        self._announced = 0
        self._known: dict[tuple[str, Settings], Known] = {}

    @property
    def notes(self) -> list[str]:
        """What was built otherwise than asked for, and where a trace could not be fitted."""
        notes = [note for known in self._known.values() for flow in known.flows for note in flow.notes]
        for (method, settings), known in self._known.items():
            batches = {batch for flow in known.flows for batch in flow.domain.batches}
            if batches and max(batches) <= MICRO_BATCHES:
                only = " and ".join(str(batch) for batch in sorted(batches))
                checkpointing = f"checkpointing {settings.gradient_checkpointing}"
                notes.append(f"sizes of {method}, {checkpointing}, follow no form: only micro-batches of {only} are searched")
        return list(dict.fromkeys(notes))

    def network(self, spec: ModelSpec, method: Method, settings: Settings) -> Network:
        """The model under a method. Raises InputError where it cannot be traced so."""
        refused = self.refusal(method, settings)
        if refused:
            raise InputError(refused)
        batch, length = int(settings.micro_batch_size), int(settings.seq_len)
        known = self._programs(self.subject(method, settings))
        return next(flow for flow in known.flows if flow.domain.covers(batch, length)).at(batch, length, spec)

    def refusal(self, method: Method, settings: Settings) -> str:
        """Why there is no network; empty where there is one. Traces it first where that may be."""
        said = not_traced(method, settings)
        wish = self.wish(method, settings)
        point = int(settings.micro_batch_size), wish.length
        if said or self._programs(wish.subject).covers(*point):
            return said
        if not self.closed:
            self.trace([wish])
        known = self._programs(wish.subject)
        if known.covers(*point):
            return ""
        if wish.length in known.refusals or not known.flows:
            return known.refusals.get(wish.length, f"{method.name} was not traced under these settings; name it with --method")
        domain = known.flows[0].domain
        return (
            f"traces of {method.name} hold for micro-batches of {domain.batches[0]} to {domain.batches[1]} and lengths of "
            f"{domain.lengths[0]} to {domain.lengths[1]}, not for {point[0]} x {point[1]}"
        )

    def subject(self, method: Method, settings: Settings) -> Subject:
        """What is traced for a method under settings."""
        id, config, task = self._model
        return Subject(
            id,
            config.mapping,
            method,
            settings=usual(settings),
            optimizer=_OPTIMIZER,
            gradient_accumulation_steps=MICRO_BATCHES,
            task=task,
        )

    def wish(self, method: Method, settings: Settings) -> Wish:
        """The program that would cover a point; of batches those from 1 on where that reaches."""
        batch = int(settings.micro_batch_size)
        return Wish(self.subject(method, settings), 1 if batch <= FARTHEST else batch, int(settings.seq_len))

    def trace(self, wishes: Iterable[Wish]) -> None:
        """Make and keep the programs that are not there yet; says on stderr what it does."""
        left = [wish for wish in wishes if not self._answered(wish)]
        if not left:
            return
        with profiling_needs("planning a model without a family"):
            from tuneplan.profiling.fallback.tracing import traced, traced_together

        self._announced = len(left)
        start, done = time.monotonic(), 0
        while left:
            wish = left.pop(0)
            self._keep(wish, *traced(wish.subject, wish.batch, wish.length, partial(self._tell, wish)))
            done += 1
            if len(left) > 1 and (time.monotonic() - start) / done * len(left) > POOL_SECONDS:
                for place, result in traced_together([(w.subject, w.batch, w.length) for w in left]):
                    self._tell(left[place])
                    self._keep(left[place], *result)
                return

    def _tell(self, wish: Wish) -> None:
        """Say on stderr what is being traced, how much there is the first time."""
        if self._announced:
            kind, fits = self._model[1].mapping.get("model_type"), f"{self._announced} fit{'s' if self._announced > 1 else ''}"
            click.echo(f"plan: tracing the real code of {kind} for {fits}; kept for the next time", err=True)
        self._announced = 0
        click.echo(f"plan: {wish.label}", err=True)

    def _answered(self, wish: Wish) -> bool:
        known = self._programs(wish.subject)
        return known.covers(wish.batch, wish.length) or wish.length in known.refusals

    def _keep(self, wish: Wish, made: list[dict[str, Any]], refusal: str) -> None:
        kept = cache.contents(wish.subject, STEPS)["programs"]
        known = self._programs(wish.subject)
        refusals = {**known.refusals, wish.length: refusal} if refusal else known.refusals
        known = Known((*(Flow.of(content) for content in made), *known.flows))
        cache.keep(wish.subject, [*made, *kept][:MOST_PROGRAMS], STEPS, refusals)
        self._known[_key(wish.subject)] = Known(known.flows, refusals)

    def _programs(self, subject: Subject) -> Known:
        """What is known of a subject, by the cache or since."""
        key = _key(subject)
        if key not in self._known:
            content = cache.contents(subject, STEPS)
            try:
                refusals = {int(length): str(reason) for length, reason in content.get("refusals", ())}
                self._known[key] = Known(tuple(Flow.of(program) for program in content["programs"]), refusals)
            except cache.UNUSABLE:
                self._known[key] = Known()
        return self._known[key]


def hush() -> None:
    """Keep bitsandbytes from warning of optional kernels in a process that is about to import it."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def usual(settings: Settings) -> Settings:
    """Settings as a trace runs them: without what the planner adds itself, and for the class of the card."""
    return replace(
        settings,
        micro_batch_size=1,
        seq_len=2,
        precision="autocast" if settings.autocast else "pure",
        accumulating=True,
        compute_capability=AMPERE if settings.compute_capability >= AMPERE else OLDER,
        gathered_cast=False,
        max_grad_norm=0.0,
    )


def not_traced(method: Method, settings: Settings) -> str:
    """What no trace of one process has."""
    if not settings.objective.plain:
        return f"--training {settings.objective.name} is TRL's trainer, which is not traced; use supervised fine-tuning"
    if settings.images not in (0, 1) or settings.image_size is not None:
        return "the batches of traced models are of text alone; leave --images and --image-size out"
    if settings.gathered_cast and any(getattr(part, "autocast_adapter_dtype", False) for part in method.parts):
        return f"{method.name} computes in one dtype where DeepSpeed or FSDP casts its adapters, which is not traced"
    return ""


def _key(subject: Subject) -> tuple[str, Settings]:
    return subject.method.name, replace(subject.settings, micro_batch_size=1, seq_len=2)
