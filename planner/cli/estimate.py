"""`plan estimate`: one configuration, in full."""

from typing import TYPE_CHECKING, Any

import click

from tuneplan.planner.cli.data_words import data_options, read_batches, with_batches
from tuneplan.planner.cli.options import json_option
from tuneplan.planner.cli.step_words import Asked, asked, request_options
from tuneplan.planner.cli.sweep import check_plot, sweep_estimate, sweep_options
from tuneplan.planner.errors import InputError, NotModelledError
from tuneplan.planner.report import document

if TYPE_CHECKING:
    from tuneplan.planner.data.epoch import Epoch
    from tuneplan.planner.estimate import Estimate


@click.command(name="estimate")
@request_options
@data_options
@sweep_options
@json_option
def command(as_json: bool, sweep: str | None, plot: str | None, **given: Any) -> int:
    """One configuration, in full: memory by phase and component, time, checkpoint.

    \b
    Examples:
      plan estimate --model 7b --method lora --micro-batch-size 8 --seq-len 512
      plan estimate --model 70b --method qlora --gradient-checkpointing --gpu a100-80g --json
      plan estimate --model 8b --method qlora --gpu rtx-4090 --dataset train.jsonl --tokenizer ./Llama-3.1-8B
      plan estimate --model 8b --method qlora --gpu rtx-4090 --sweep seq-len=512..8192 --plot lengths.png

    A model that no family mirrors is estimated from a trace of the real code, which needs the extra `profile`.
    """  # noqa: D301 (click reads the escape)
    check_plot(sweep, plot)
    if sweep is not None:
        if given["dataset"] is not None or given["lengths"] is not None:
            raise InputError("--sweep takes lengths one by one, and data bring their own; leave one of them out")
        return sweep_estimate(given, sweep, plot, as_json)
    from tuneplan.planner.estimate import estimate

    step = asked(given)
    batches = read_batches(given, int(step.settings.seq_len))
    if batches is not None:
        step = with_batches(step, batches)
    try:
        result = estimate(step.request())
    except NotModelledError as error:
        return _traced(step, error, as_json)
    passed = None
    if batches is not None:
        from tuneplan.planner.data.epoch import epoch

        passed = epoch(result.request, batches)
    return _reported(result, as_json, passed)


def _reported(result: "Estimate", as_json: bool, passed: "Epoch | None" = None) -> int:
    """Print an estimate, with an epoch of the data if there are any; gives the exit code."""
    if as_json:
        click.echo(document.text({**result.to_json(), **({} if passed is None else {"data": passed.to_json()})}))
    else:
        from tuneplan.planner.report.terminal import console, estimate_report, facts

        console().print(estimate_report(result))
        if passed is not None:
            console().print()
            console().print(facts(passed.rows()))
    capacity = result.request.capacity_bytes
    return 1 if capacity is not None and result.device_bytes > capacity else 0


def _traced(step: Asked, error: NotModelledError, as_json: bool) -> int:
    """The same from the real code."""
    from tuneplan.planner.cli.extras import profiling_needs

    if step.sharding.gpu_count > 1 and not step.sharding.splits_model:
        from tuneplan.planner.cli.traced import spec_of
        from tuneplan.planner.estimate import estimate

        return _reported(estimate(step.request(spec_of)), as_json)
    try:
        with profiling_needs("plan estimate of a model without a family"):
            from tuneplan.profiling.fallback.estimate import estimate_traced
    except InputError as missing:
        raise InputError(f"{error}; {missing}") from missing
    try:
        result = estimate_traced(step, f"{error.reason}; this is a trace of the real code")
    except InputError as refused:
        raise InputError(f"{error.reason}; its real code cannot be traced either: {refused}") from refused
    if as_json:
        click.echo(document.text(result.to_json()))
    else:
        from tuneplan.planner.report.terminal import console

        console().print(result.report())
    return result.exit_code
