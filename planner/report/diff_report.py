"""`plan diff` at a terminal and as Markdown for a pull request."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuneplan.planner.diff import Diff
from tuneplan.planner.report.diff_rows import Row, figures, phases, settings, verdict


def render(found: Diff) -> RenderableType:
    """Both configurations side by side."""
    parts: list[RenderableType] = [
        Text(f"{found.old.name} -> {found.new.name}"),
        Text(verdict(found), style="bold"),
        Text(),
        _table("", figures(found)),
        Text(),
        _table("allocated peak in", phases(found)),
    ]
    if found.settings:
        parts += [Text(), _table("what differs", settings(found), changes=False)]
    parts += [Text(f"! {breach}", style="bold red") for breach in found.breaches]
    for side in (found.old, found.new):
        parts += [Text(f"! {side.name}: {warning}", style="yellow") for warning in _config_warnings(side.estimate.request.config)]
    return Group(*parts)


def markdown(found: Diff) -> str:
    """A page for a comment on a pull request."""
    lines = ["## Training configuration: memory, time and cost", "", _cell(verdict(found)), ""]
    lines += [f"> **{_cell(breach)}**" for breach in found.breaches] + ([""] if found.breaches else [])
    lines += _rows(["", f"`{_code(found.old.name)}`", f"`{_code(found.new.name)}`", "change"], figures(found))
    lines += ["", *_rows(["allocated peak in", "old", "new", "change"], phases(found))]
    if found.settings:
        lines += ["", "| what differs | old | new |", "|---|---|---|"]
        lines += [f"| {_cell(row.name)} | {_cell(row.old)} | {_cell(row.new)} |" for row in settings(found)]
    warnings = [(s.name, w) for s in (found.old, found.new) for w in _config_warnings(s.estimate.request.config)]
    if warnings:
        lines += ["", "Not modelled or assumed:", "", *(f"- {_cell(name)}: {_cell(text)}" for name, text in warnings)]
    return "\n".join([*lines, "", "Estimated by `plan diff`.", ""])


def _config_warnings(config: object) -> Sequence[str]:
    return getattr(getattr(config, "config", None), "warnings", ())


def _table(title: str, rows: Sequence[Row], changes: bool = True) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(title, no_wrap=changes, overflow="fold")
    for name in ("old", "new"):
        table.add_column(name, justify="right" if changes else "left", no_wrap=changes, overflow="fold")
    if changes:
        table.add_column("change", justify="right", no_wrap=True)
    for row in rows:
        style = "bold" if row.name.startswith("peak") else ""
        cells = (row.name, row.old, row.new, row.change) if changes else (row.name, row.old, row.new)
        table.add_row(*cells, style=style)
    return table


def _rows(header: list[str], rows: Sequence[Row]) -> list[str]:
    lines = [f"| {' | '.join(header)} |", "|---|---:|---:|---:|"]
    for row in rows:
        name = _cell(row.name.strip())
        shown = f"**{name}**" if row.name.startswith("peak") else f"&nbsp;&nbsp;{name}" if row.name.startswith("  ") else name
        lines.append(f"| {shown} | {_cell(row.old)} | {_cell(row.new)} | {_cell(row.change)} |")
    return lines


def _code(text: str) -> str:
    return " ".join(text.replace("`", "'").replace("|", "/").split())


def _cell(text: str) -> str:
    """Text that neither ends a cell nor starts markup."""
    plain = " ".join(text.split())
    return "".join(f"\\{c}" if c in r"\|*_<>`[]" else c for c in plain)
