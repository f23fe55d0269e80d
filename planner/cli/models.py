"""`plan models`: the catalog."""

import json

import click

from tuneplan.planner.cli.options import json_option
from tuneplan.planner.models.lookup import CatalogEntry, entries, find
from tuneplan.planner.report import document
from tuneplan.planner.units import format_count


@click.group(name="models", invoke_without_command=True)
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> int:
    """The models that are known by name; any other works by the path to its config.json."""
    if ctx.invoked_subcommand is not None:
        return 0
    if as_json:
        click.echo(document.text({"models": [_json(entry) for entry in entries()]}))
        return 0
    from rich.table import Table

    from tuneplan.planner.report.terminal import console

    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("id", no_wrap=True)
    table.add_column("parameters", justify="right")
    table.add_column("aliases")
    for entry in entries():
        table.add_row(entry.id, format_count(entry.parameters), ", ".join(entry.aliases))
    console().print(table)
    return 0


@command.command(name="show")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> int:
    """One model: its parameters, where its config comes from, and the config."""
    entry = find(name)
    config = json.loads(entry.config_path.read_text(encoding="utf-8"))
    if as_json:
        click.echo(document.text({**_json(entry), "config": config}))
        return 0
    click.echo(f"{entry.id}: {entry.parameters:,} parameters")
    click.echo(f"aliases: {', '.join(entry.aliases)}")
    click.echo(f"source: {entry.source}")
    click.echo(json.dumps(config, indent=2))
    return 0


def _json(entry: CatalogEntry) -> dict[str, object]:
    return {"id": entry.id, "aliases": list(entry.aliases), "parameters": entry.parameters, "source": entry.source}
