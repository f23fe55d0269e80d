"""`plan estimate`: one configuration, in full."""

from typing import Any

import click

from tuneplan.planner.cli.options import json_option
from tuneplan.planner.cli.step_words import asked, request_options
from tuneplan.planner.cli.sweep import check_plot, sweep_estimate, sweep_options
from tuneplan.planner.report import document


@click.command(name="estimate")
@request_options
@sweep_options
@json_option
def command(as_json: bool, sweep: str | None, plot: str | None, **given: Any) -> int:
    """One configuration, in full: memory by phase and component, time, checkpoint.

    \b
    Examples:
      plan estimate --model 7b --method lora --micro-batch-size 8 --seq-len 512
      plan estimate --model 70b --method qlora --gradient-checkpointing --gpu a100-80g --json
      plan estimate --model 8b --method qlora --gpu rtx-4090 --sweep seq-len=512..8192 --plot lengths.png
    """  # noqa: D301 (click reads the escape)
    check_plot(sweep, plot)
    if sweep is not None:
        return sweep_estimate(given, sweep, plot, as_json)
    from tuneplan.planner.estimate import estimate

    result = estimate(asked(given).request())
    if as_json:
        click.echo(document.text(result.to_json()))
    else:
        from tuneplan.planner.report.terminal import console, estimate_report

        console().print(estimate_report(result))
    capacity = result.request.capacity_bytes
    return 1 if capacity is not None and result.device_bytes > capacity else 0
