"""`plan compare`: methods side by side on every dimension."""

from dataclasses import replace
from datetime import date
from typing import Any

import click

from tuneplan.planner.cli.options import json_option, read_methods
from tuneplan.planner.cli.search import COMPARED, job_of, job_options, method_names
from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.compose import standing_alone
from tuneplan.planner.report import document

ALL = "all"
PLOTS = (".png", ".svg")


@click.command(name="compare")
@click.option(
    "--methods",
    "--method",
    "method",
    default=COMPARED,
    show_default=True,
    metavar="NAMES|all",
    help="Methods to compare, comma-separated, or every one with a name.",
)
@job_options
@click.option("--mergeable", is_flag=True, help="Only methods that fold into the base weights.")
@click.option(
    "--max-inference-overhead",
    type=float,
    default=None,
    metavar="SHARE",
    help="Only methods whose decoded token takes at most this much longer, such as 0.05; merged where that can be.",
)
@click.option("--unmerged", is_flag=True, help="With --max-inference-overhead: judge it with nothing merged.")
@click.option(
    "--min-quality",
    type=float,
    default=None,
    metavar="SHARE",
    help="Only methods whose published scores have at least this median over those of full fine-tuning, such as 0.95.",
)
@click.option("--plot", metavar="FILE", help="Also draw the comparison, as .png or .svg.")
@json_option
def command(as_json: bool, plot: str | None, **given: Any) -> int:
    """Methods side by side: parameters, compute, memory, inference, storage, time, cost, effort, published quality.

    Your own adapter of --peft-config is compared with those of --methods.

    \b
    Examples:
      plan compare --model 7b --gpu a100-80g
      plan compare --model 8b --gpu rtx-4090 --gpus 1 --methods "lora(r=16),qlora,prompt_tuning" --plot methods.png
      plan compare --model 8b --gpu h100-80g --methods all --mergeable --min-quality 0.95
    """  # noqa: D301 (click reads the escape)
    from tuneplan.planner.compare import Filters, compare

    if given["model"] is None:
        raise InputError("name a model: plan compare --model 7b --gpu a100-80g (plan compare --help)")
    if plot is not None and not plot.lower().endswith(PLOTS):
        raise InputError(f"--plot {plot!r} is no kind of picture that is drawn here; end it in {' or '.join(PLOTS)}")
    everything = given["method"].strip().lower() == ALL
    if everything:
        given["method"] = ",".join(standing_alone())
    filters = Filters(given["mergeable"], given["max_inference_overhead"], given["unmerged"], given["min_quality"])
    job = job_of(given)
    if given["peft_config"] is not None:
        named = read_methods(method_names(given["method"]), None, None)
        job = replace(job, methods=tuple({method.name: method for method in (*job.methods, *named)}.values()))
    found = compare(job, filters, date.today(), skip_misfits=everything or given["method"] == COMPARED)
    if plot is not None and found.rows:
        from tuneplan.planner.report.compare_plot import draw

        draw(found, plot)
    if as_json:
        from tuneplan.planner.report.compare_json import comparison_json

        click.echo(document.text(comparison_json(found)))
    else:
        from tuneplan.planner.report.compare_report import render
        from tuneplan.planner.report.terminal import console

        console().print(render(found, given["model"]))
    return 0 if found.rows else 1
