"""`plan explain`: a figure's formula, numbers and source."""

from dataclasses import asdict
from typing import Any

import click

from tuneplan.planner.cli.options import json_option
from tuneplan.planner.cli.step_words import asked, request_options
from tuneplan.planner.errors import UnknownNameError
from tuneplan.planner.report import document


@click.command(name="explain")
@click.argument("figure")
@request_options
@json_option
def command(figure: str, as_json: bool, **given: Any) -> int:
    """Any figure of an estimate: its formula, the numbers in it, and where it comes from.

    \b
    FIGURE is one of: peak, weights, gradients, optimizer_states, activations, logits, temporary,
    reserved, runtime, checkpoint, step; or all.

    \b
    Example:
      plan explain activations --model 7b --method lora --micro-batch-size 8 --seq-len 512
    """  # noqa: D301 (click reads the escape)
    from tuneplan.planner.estimate import estimate
    from tuneplan.planner.report.explain import EXPLAINERS, explain

    if figure != "all" and figure not in EXPLAINERS:
        raise UnknownNameError("figure", figure, [*EXPLAINERS, "all"], "plan explain --help")
    result = estimate(asked(given).request(), advice=False)
    explanations = [explain(result, name) for name in (EXPLAINERS if figure == "all" else [figure])]
    if as_json:
        body = {"request": result.request.to_json(), "explanations": [asdict(e) for e in explanations]}
        click.echo(document.text({**body}))
        return 0
    for explanation in explanations:
        click.echo(f"{explanation.figure}: {explanation.value} ({explanation.basis})")
        click.echo(f"  = {explanation.formula}")
        for line in explanation.numbers:
            click.echo(f"    {line}")
        click.echo(f"  source: {explanation.source}")
    return 0
