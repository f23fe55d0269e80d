"""`plan trace`: the same as an estimate, from the real transformers and PEFT code, without a GPU."""

from pathlib import Path
from typing import Any

import click

from tuneplan.planner.cli.config_words import say_warnings
from tuneplan.planner.cli.options import json_option
from tuneplan.planner.cli.step_words import asked, request_options
from tuneplan.planner.report import document


@click.command(name="trace")
@request_options
@click.option("--verify", "side_by_side", is_flag=True, help="Beside the estimate of the same step: the gap, piece by piece.")
@click.option(
    "--timeline", type=click.Path(path_type=Path), default=None, help="Live bytes over the step: .png, .svg or .pickle."
)
@click.option("--snapshot", type=click.Path(path_type=Path), default=None, help="A snapshot of a real run to lay beside it.")
@json_option
def command(as_json: bool, side_by_side: bool, timeline: Path | None, snapshot: Path | None, **given: Any) -> int:
    """One configuration by running the real code on the meta device: no GPU, no weights.

    \b
    Examples:
      plan trace --model 7b --method lora --micro-batch-size 8 --seq-len 512 --verify
      plan trace --model ./config.json --peft-config adapter_config.json --timeline step.png
    """  # noqa: D301 (click reads the escape)
    from tuneplan.planner.cli.extras import profiling_needs

    with profiling_needs("plan trace"):
        from tuneplan.profiling.command import run_trace
    step = asked(given)
    say_warnings(step.files)
    outcome = run_trace(step, side_by_side, timeline, snapshot)
    if as_json:
        click.echo(document.text(outcome.to_json()))
    else:
        from tuneplan.planner.report.terminal import console

        console().print(outcome.report())
    return outcome.exit_code
