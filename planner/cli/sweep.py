"""`--sweep` of `plan` and `plan estimate`: the same question for several values of one option."""

from datetime import date
from typing import Any

import click

from tuneplan.planner.cli.options import stack
from tuneplan.planner.errors import InputError
from tuneplan.planner.report import document

OF_ESTIMATE = ("seq-len", "micro-batch-size", "gradient-accumulation-steps", "rank", "data-parallel")
OF_SEARCH = ("seq-len", "global-batch-size", "rank", "gpus", "tokens")
PLOTS = (".png", ".svg")

sweep_options = stack(
    click.option("--sweep", metavar="OPTION=VALUES", help="Ask for several values, such as seq-len=512..32768 or rank=8,16,64."),
    click.option("--plot", metavar="FILE", help="With --sweep: also draw it, as .png or .svg."),
)


def check_plot(sweep: str | None, plot: str | None) -> None:
    """Raise InputError for a plot without a sweep, or of a kind that is not drawn."""
    if plot is not None and sweep is None:
        raise InputError("--plot draws a sweep; add such as --sweep seq-len=512..32768, or leave it out")
    if plot is not None and not plot.lower().endswith(PLOTS):
        raise InputError(f"--plot {plot!r} is no kind of picture that is drawn here; end it in {' or '.join(PLOTS)}")


def sweep_estimate(given: dict[str, Any], text: str, plot: str | None, as_json: bool) -> int:
    """Estimates over an axis, and the largest batch and length that fit."""
    from tuneplan.planner.cli.step_words import asked
    from tuneplan.planner.cli.traced import longest_first, spec_of
    from tuneplan.planner.estimate import Estimate, estimate
    from tuneplan.planner.report import sweep_report
    from tuneplan.planner.sweep import axis, fits, limits, sweep

    over = axis(text, OF_ESTIMATE)

    def answer(value: int) -> Estimate:
        return estimate(asked({**given, over.name: value}).request(spec_of), advice=False)

    plain = asked(given).request(spec_of)
    longest_first(plain.spec, over, answer)
    points = sweep(over, answer)
    largest = limits(plain)
    if plot is not None:
        from tuneplan.planner.report.sweep_plot import draw_estimates

        draw_estimates(over, points, plot)
    if as_json:
        click.echo(document.text(sweep_report.estimates_json(over, points, largest)))
    else:
        _print(sweep_report.estimates_table(over, points, largest))
    return 0 if any(point.answer is not None and fits(point.answer) for point in points) else 1


def sweep_search(given: dict[str, Any], text: str, plot: str | None, as_json: bool) -> int:
    """The recommended plan over an axis."""
    from tuneplan.planner.cli.search import job_of
    from tuneplan.planner.cli.traced import longest_first, read_any_model
    from tuneplan.planner.job import Job
    from tuneplan.planner.plan import Answer
    from tuneplan.planner.report import sweep_report
    from tuneplan.planner.search import find
    from tuneplan.planner.sweep import axis, sweep

    over = axis(text, OF_SEARCH)
    words = over.name in ("gpus", "tokens")

    def job(value: int) -> Job:
        return job_of({**given, over.name: str(value) if words else value})

    def answer(value: int) -> Answer:
        return find(job(value), date.today())

    if given["model"] is not None:
        longest_first(read_any_model(given["model"], given["task"]), over, job)
    points = sweep(over, answer)
    if plot is not None:
        from tuneplan.planner.report.sweep_plot import draw_answers

        draw_answers(over, points, plot)
    if as_json:
        click.echo(document.text(sweep_report.answers_json(over, points)))
    else:
        _print(sweep_report.answers_table(over, points))
    return 0 if any(point.answer is not None and point.answer.plans for point in points) else 1


def _print(table: Any) -> None:
    from tuneplan.planner.report.terminal import console

    console().print(table)
