"""`plan export`: a plan as files that other tools run as they are."""

from dataclasses import replace
from datetime import date
from typing import Any

import click

from tuneplan.planner.cli.options import json_option
from tuneplan.planner.cli.search import job_of, job_options, method_option
from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.report import document

ENGINES = ("ddp", "fsdp", "deepspeed")


@click.command(name="export")
@click.option(
    "--format", "format_name", default="trl", show_default=True, metavar="NAME", help="trl, axolotl, llama-factory or torchtune."
)
@click.option("--out", required=True, metavar="DIR", help="Folder for the files.")
@click.option("--plan", "plan_file", metavar="FILE", help="A document of plan --json, instead of --model and the rest.")
@click.option("--choice", type=int, default=1, show_default=True, metavar="N", help="Which of the plans, 1 for the best.")
@click.option("--engine", metavar="NAME", help=f"{', '.join(ENGINES)}, instead of what the plan suggests.")
@click.option("--skypilot", is_flag=True, help="Also a SkyPilot task that rents the machine.")
@click.option(
    "--train-data", metavar="NAME", help="Hub data set, or a file of JSON lines.  [default: --dataset, or a public one]"
)
@click.option(
    "--train-data-format", "style", default="text", show_default=True, metavar="text|chat", help="A column text, or messages."
)
@click.option("--force", is_flag=True, help="Write over files that exist.")
@method_option
@job_options
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    format_name: str,
    out: str,
    plan_file: str | None,
    choice: int,
    engine: str | None,
    skypilot: bool,
    train_data: str | None,
    style: str,
    force: bool,
    as_json: bool,
    **given: Any,
) -> int:
    """Write the files that run a plan: configuration, script, launcher, pinned versions.

    \b
    Examples:
      plan export --model 8b --gpu a100-80g --method lora --out run
      plan export --model 70b --gpu a100-80g --gpus 8 --precision autocast --format axolotl --skypilot --out run
      plan export --plan plan.json --choice 2 --format llama-factory --out run
    """  # noqa: D301 (click reads the escape)
    from tuneplan.planner.export.bundle import bundle
    from tuneplan.planner.export.chosen import from_answer, from_file
    from tuneplan.planner.export.files import write_all
    from tuneplan.planner.export.job import ExportJob, data_of, local_model
    from tuneplan.planner.report.json_report import plan_json
    from tuneplan.planner.search import find

    if engine is not None and engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES, "plan export --help")
    data = data_of(train_data or given.get("dataset"), style)
    today = date.today()
    notes: tuple[str, ...] = ()
    units = "root" if format_name == "torchtune" else "accelerate"  # which all other tools use
    if plan_file is not None:
        _refuse_others(ctx, given)
        plan, tokens, notes = from_file(plan_file, choice, today, units)
    elif given["model"] is None:
        raise InputError("name a model, or a plan: plan export --model 8b --gpu a100-80g --out run (plan export --help)")
    else:
        job = replace(job_of(given), fsdp_units=units)
        plan, tokens = from_answer(find(job, today), choice), job.tokens
    exported = ExportJob(plan, local_model(plan.request.spec.id), tokens, data, today)
    made = bundle(exported, format_name, engine, skypilot)
    paths = write_all(out, made.files, force)
    for note in (*notes, *made.gaps):
        click.echo(f"note: {note}", err=True)
    if as_json:
        said = [*notes, *made.gaps]
        body = {"format": format_name, "files": [str(path) for path in paths], "notes": said, "plan": plan_json(plan)}
        click.echo(document.text(body))
    else:
        click.echo("\n".join(str(path) for path in paths))
    return 0


def _refuse_others(ctx: click.Context, given: dict[str, Any]) -> None:
    """Raise InputError where options of the search are typed beside a plan that has its own."""
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if name in given and ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise InputError(f"--plan has the plan's own options, and {parameter.opts[0]} is another; give one of them")
