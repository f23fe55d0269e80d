"""`plan profile`: the same as an estimate, measured: the real step on this machine's GPU or CPU."""

from pathlib import Path
from typing import Any

import click

from tuneplan.planner.cli.config_words import say_warnings
from tuneplan.planner.cli.options import json_option, stack
from tuneplan.planner.cli.step_words import asked, request_options
from tuneplan.planner.report import document

run_options = stack(
    click.option("--device", default="auto", show_default=True, metavar="auto|cuda|cpu", help="What the step runs on."),
    click.option("--warmup-steps", type=int, default=2, show_default=True, help="Steps before anything is timed."),
    click.option("--steps", type=int, default=5, show_default=True, help="Steps that are timed."),
    click.option("--out", type=click.Path(path_type=Path), default=None, help="Also write the JSON document to this file."),
)


@click.command(name="profile")
@request_options
@run_options
@json_option
def command(
    as_json: bool,
    device: str,
    warmup_steps: int,
    steps: int,
    out: Path | None,
    **given: Any,
) -> int:
    """One configuration measured here: the real step with random weights, on a GPU or a CPU.

    \b
    Examples:
      plan profile --model 7b --method qlora --micro-batch-size 8 --seq-len 512 --out qlora.json
      plan profile --model ./config.json --device cpu --attention eager --seq-len 64
      torchrun --nproc-per-node 2 -m tuneplan.planner.cli.main profile --model 7b --data-parallel 2
    """  # noqa: D301 (click reads the escape)
    from tuneplan.planner.cli.extras import profiling_needs

    with profiling_needs("plan profile"):
        from tuneplan.profiling.profile_command import run_profile
    step = asked(given)
    say_warnings(step.files)
    outcome = run_profile(step, device, warmup_steps, steps, out)
    if outcome.reports and as_json:
        click.echo(document.text(outcome.to_json()))
    elif outcome.reports:
        from tuneplan.planner.report.terminal import console

        console().print(outcome.report())
    return outcome.exit_code
