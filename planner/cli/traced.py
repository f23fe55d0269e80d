"""Models that no family mirrors, on the command line: planned from traces of their real code, if the extra is installed."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from tuneplan.planner.cli.extras import profiling_needs
from tuneplan.planner.cli.options import load_model
from tuneplan.planner.errors import InputError, NotModelledError, TuneplanError
from tuneplan.planner.job import Job
from tuneplan.planner.models import tasks
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.models.spec import ModelSpec

if TYPE_CHECKING:
    from tuneplan.planner.sweep import Axis


def spec_of(id: str, config: ConfigReader, task: str = "") -> ModelSpec:
    """The spec of a model, of whichever kind. Raises InputError."""
    try:
        return read_spec(id, config, task)
    except NotModelledError as error:
        try:
            with profiling_needs("planning a model without a family"):
                from tuneplan.profiling.fallback.prepare import traced_spec
        except InputError as missing:
            raise InputError(f"{error}; {missing}") from missing
        return traced_spec(id, config, task, error.reason)


def read_any_model(name: str, task: str = "", num_labels: int | None = None) -> ModelSpec:
    """The spec of `--model` for `--task`, as `read_model`, of whichever kind. Raises InputError."""
    spec = spec_of(*load_model(name, num_labels), tasks.task_name(task))
    if spec.source is None:
        tasks.check_labels(spec, num_labels)
    return spec


def longest_first(spec: ModelSpec, over: "Axis", ask: Callable[[int], object]) -> None:
    """Ask for every value of a sweep of lengths, the longest first: what is traced for it answers shorter ones too."""
    if spec.source is not None and over.name == "seq_len":
        for value in reversed(over.values):
            with suppress(TuneplanError):
                ask(value)


def with_traces(job: Job) -> Job:
    """The job, with the traces that a search of a model without a family needs. Raises InputError where there can be none."""
    if job.spec.source is None:
        return job
    from tuneplan.profiling.fallback.prepare import prepared

    return prepared(job)
