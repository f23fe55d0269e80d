"""What `plan check` does, from the words of the command line to the reports of every kind."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import RenderableType

from tuneplan.planner.errors import InputError
from tuneplan.profiling.files import write_atomic
from tuneplan.profiling.regression.cases import find
from tuneplan.profiling.regression.check import Checked, check
from tuneplan.profiling.regression.github import annotations
from tuneplan.profiling.regression.junit import junit_xml
from tuneplan.profiling.regression.markdown import markdown
from tuneplan.profiling.regression.report import check_report, to_json


@dataclass(frozen=True, slots=True)
class Outcome:
    """All cases, ready to be shown."""

    checked: Checked

    @property
    def exit_code(self) -> int:
        """0 fine, 1 a regression, 2 a case that could not be checked."""
        return self.checked.exit_code

    def to_json(self) -> dict[str, Any]:
        """The document."""
        return to_json(self.checked)

    def report(self) -> RenderableType:
        """For a terminal."""
        return check_report(self.checked)


def run_check(names: Sequence[str], config: Path | None, update: bool, junit: Path | None, summary: Path | None) -> Outcome:
    """Check or record the cases, and write the files that were asked for; on GitHub Actions its summary and annotations too.

    Args:
        names: of the cases to run; all where none is given.
        config: the file of cases; None for the one in this folder.
        update: record instead of comparing.
        junit: where to write JUnit XML.
        summary: where to write Markdown.

    Raises:
        InputError: the cases or the baseline cannot be used, or a file cannot be written.
    """
    path = config if config is not None else find(Path.cwd())
    interactive = sys.stderr.isatty()

    def told(name: str) -> None:
        if interactive:
            click.echo(f"plan: {name} ...", err=True)

    checked = check(path, names, update, told)
    for result in checked.results:
        if result.status == "error":
            click.echo(f"plan: {result.message}", err=True)
    if junit is not None:
        write_atomic(junit, junit_xml(checked))
    if summary is not None:
        write_atomic(summary, markdown(checked).encode())
    if os.environ.get("GITHUB_ACTIONS") == "true":
        _on_github(checked)
    return Outcome(checked)


def _on_github(checked: Checked) -> None:
    """The job's summary page, and annotations; the runner reads them from stderr as well as from stdout."""
    page = os.environ.get("GITHUB_STEP_SUMMARY")
    if page:
        try:
            with open(page, "a", encoding="utf-8") as file:
                file.write(markdown(checked))
        except OSError as error:
            raise InputError(f"GITHUB_STEP_SUMMARY={page} cannot be written: {error.strerror or error}; unset it") from error
    for line in annotations(checked, Path(os.environ.get("GITHUB_WORKSPACE") or Path.cwd())):
        click.echo(line, err=True)
