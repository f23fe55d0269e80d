"""`plan capacity`: what to rent or buy for a set of workloads."""

from datetime import date
from pathlib import Path
from typing import Any

import click

from tuneplan.planner.cli.options import json_option, write_file
from tuneplan.planner.errors import InputError
from tuneplan.planner.report import document


@click.command(name="capacity")
@click.argument("file", metavar="WORKLOADS.YAML")
@click.option("--growth", default=None, metavar="G", help="Growth of all workloads instead of the file's, such as 10%/month.")
@click.option("--horizon", default=None, metavar="TIME", help="Instead of the file's, such as '24 months'.")
@click.option("--prices", default=None, metavar="FILE", help="Your own prices, a CSV like those of hardware_profiles/prices.")
@click.option("--csv", "csv_file", default=None, metavar="FILE", help="Also write every month of every option as CSV.")
@click.option("--markdown", default=None, metavar="FILE", help="Also write a page of Markdown.")
@click.option("--html", default=None, metavar="FILE", help="Also write a page of HTML with plots.")
@click.option("--plots", default=None, metavar="FOLDER", help="Also write cost.png and utilisation.png.")
@json_option
def command(file: str, as_json: bool, **given: Any) -> int:
    """What to rent, reserve or buy for training jobs and serving loads.

    \b
    Examples:
      plan capacity docs/examples/workloads.yaml
      plan capacity workloads.yaml --growth 10%/month --horizon "36 months" --html capacity.html
    """  # noqa: D301 (click reads the escape)
    from tuneplan.hardware_profiles.loader import load_price_file
    from tuneplan.planner.capacity.options import plan_capacity
    from tuneplan.planner.capacity.read import read_workloads
    from tuneplan.planner.capacity.training_fit import Models
    from tuneplan.planner.cli.traced import spec_of, with_traces
    from tuneplan.planner.job import Job

    for option in ("prices", "csv_file", "markdown", "html", "plots"):
        if given[option] is not None and not given[option].strip():
            raise InputError(f"--{option.removesuffix('_file')} is empty; give a path or leave it out")
    extra = load_price_file(given["prices"]) if given["prices"] else []
    known = frozenset(offer.instance.id.lower() for offer in extra)
    changes = {name: given[name] for name in ("growth", "horizon") if given[name] is not None}
    workloads, source = read_workloads(file, known, changes)
    traced: dict[str, None] = {}

    def ready(job: Job) -> Job:
        job = with_traces(job)
        if job.spec.source is not None:
            traced[job.spec.note] = None
        return job

    answer = plan_capacity(workloads, source, date.today(), extra, Models(spec_of, ready))
    for note in traced:
        click.echo(f"note: {note}", err=True)
    _write_reports(answer, given)
    if as_json:
        from tuneplan.planner.report.capacity_json import capacity_json

        click.echo(document.text(capacity_json(answer)))
    else:
        from tuneplan.planner.report.capacity_pages import terminal_page
        from tuneplan.planner.report.capacity_summary import summary
        from tuneplan.planner.report.terminal import console

        console().print(terminal_page(summary(answer)))
    return 0 if answer.recommended is not None and not answer.unserved else 1


def _write_reports(answer: Any, given: dict[str, Any]) -> None:
    """The files that were asked for. Raises InputError where one cannot be written."""
    from tuneplan.planner.report.capacity_json import capacity_csv
    from tuneplan.planner.report.capacity_pages import html_page, markdown_page, plots
    from tuneplan.planner.report.capacity_summary import summary

    if given["csv_file"] is not None:
        write_file(given["csv_file"], capacity_csv(answer))
    if given["markdown"] is not None:
        write_file(given["markdown"], markdown_page(summary(answer)))
    if given["html"] is not None:
        write_file(given["html"], html_page(summary(answer), plots(answer, "svg")))
    if given["plots"] is not None:
        folder = Path(given["plots"])
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError):
            raise InputError(f"{given['plots']!r} cannot be made a folder; choose another place") from None
        for name, image in plots(answer, "png").items():
            write_file(str(folder / f"{name}.png"), image)
