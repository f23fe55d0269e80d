"""`plan check`: the memory of a repository's cases against its committed baseline, for continuous integration."""

from pathlib import Path

import click

from tuneplan.planner.cli.options import json_option
from tuneplan.planner.report import document


@click.command(name="check")
@click.argument("cases", nargs=-1, metavar="[CASE]...")
@click.option(
    "--config", type=click.Path(path_type=Path), default=None, help="File of cases.  [default: tuneplan.toml, pyproject.toml]"
)
@click.option("--update", is_flag=True, help="Record what the cases need now, instead of comparing.")
@click.option("--junit", type=click.Path(path_type=Path), default=None, help="Also write JUnit XML to this file.")
@click.option(
    "--markdown",
    type=click.Path(path_type=Path),
    default=None,
    help="Also write Markdown to this file; on GitHub Actions the job's summary gets it anyway.",
)
@json_option
def command(
    cases: tuple[str, ...], config: Path | None, update: bool, junit: Path | None, markdown: Path | None, as_json: bool
) -> int:
    """Memory regressions: cases of tuneplan.toml against a committed baseline.

    \b
    Examples:
      plan check                      every case; exit code 1 where memory grew
      plan check --update             record what the cases need now
      plan check step --junit out.xml --markdown out.md
    """  # noqa: D301 (click reads the escape)
    from tuneplan.planner.cli.extras import profiling_needs

    with profiling_needs("plan check"):
        from tuneplan.profiling.regression.command import run_check

        outcome = run_check(cases, config, update, junit, markdown)
    if as_json:
        click.echo(document.text(outcome.to_json()))
    else:
        from tuneplan.planner.report.terminal import console

        console().print(outcome.report())
    return outcome.exit_code
