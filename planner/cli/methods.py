"""`plan methods`: the parts that methods are made of, and the compositions with a name."""

from typing import Any

import click

from tuneplan.planner.cli.method_search import search
from tuneplan.planner.cli.options import json_option
from tuneplan.planner.methods.compose import explicit, parse
from tuneplan.planner.methods.part import FAMILIES, Part, options
from tuneplan.planner.methods.patterns import PATTERNS
from tuneplan.planner.methods.registry import PARTS, PRESETS
from tuneplan.planner.report import document


@click.group(name="methods", invoke_without_command=True)
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> int:
    """The fine-tuning methods; join parts with +, such as quantized_base+lora(r=16)."""
    if ctx.invoked_subcommand is not None:
        return 0
    if as_json:
        body = {"parts": [_part(part()) for part in PARTS.values()], "presets": PRESETS}
        click.echo(document.text({**body}))
        return 0
    for family in FAMILIES:
        click.echo(f"{family}:")
        for name, part in PARTS.items():
            if part.family == family:
                click.echo(f"  {name}: {_summary(part)} [{part.paper}]")
        for name, pattern in PATTERNS.items():
            if pattern.family == family:
                click.echo(f"  {name} = {pattern.text} [{pattern.paper}]")
    return 0


@command.command(name="show")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> int:
    """One method: what it expands to, its options, and what it follows."""
    method = parse(name)
    pattern = PATTERNS.get(name.strip().lower().replace("-", "_"))
    if as_json:
        body = {"name": method.name, "in_full": explicit(method), "mergeable": method.mergeable}
        if pattern is not None:
            body |= {"family": pattern.family, "paper": pattern.paper, "leaves_out": pattern.leaves_out}
        click.echo(document.text({**body, "parts": [_part(p) for p in method.parts]}))
        return 0
    click.echo(f"{method.name} = {explicit(method)}")
    if pattern is not None:
        click.echo(f"{pattern.family}; {pattern.paper}")
        if pattern.leaves_out:
            click.echo(f"leaves out: {pattern.leaves_out}")
    click.echo(f"merges into the base weights: {'yes' if method.mergeable else 'no'}")
    for part in method.parts:
        click.echo(f"{part.label}: {_summary(type(part))}")
        for key, value in _part(part).items():
            if key not in ("name", "summary", "options") and value != "":
                click.echo(f"  {key.replace('_', ' ')}: {_yes_no(value)}")
        for option in options(part):
            click.echo(f"  option {option.name} = {getattr(part, option.name)}")
    return 0


command.add_command(search)


def _yes_no(value: object) -> object:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


def _summary(part: type[Part]) -> str:
    return (part.__doc__ or "").strip().splitlines()[0]


def _part(part: Part) -> dict[str, Any]:
    return {
        "name": part.label,
        "family": part.family,
        "summary": _summary(type(part)),
        "options": {option.name: getattr(part, option.name) for option in options(part)},
        "paper": part.paper,
        "follows": part.source,
        "not_modelled": part.not_modelled,
        "mergeable": part.mergeable,
        "merge_note": part.merge_note,
        "code_changes": part.code_changes,
        "effort": part.effort,
        "swappable": part.swappable,
        "batchable": part.batchable,
    }
