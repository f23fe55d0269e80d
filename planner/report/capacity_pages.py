"""A capacity summary at a terminal, as Markdown, as one HTML page, and as plots."""

import io
from html import escape

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from tuneplan.planner.capacity.options import CapacityAnswer
from tuneplan.planner.errors import InputError
from tuneplan.planner.report.capacity_summary import NAMES, Summary, Table
from tuneplan.planner.report.terminal import facts

_STYLE = (
    "body{font:14px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}table{border-collapse:collapse;margin:.5em 0 1.5em}"
    "td,th{padding:.2em .7em;border-bottom:1px solid #ccc;text-align:right;vertical-align:top}td.l,th.l{text-align:left}"
    "svg{max-width:100%;height:auto}"
)
_COLOURS = {"on_demand": "C0", "spot": "C1", "reserved": "C2", "buy": "C3", "mixed": "C4"}
_DASHES = {"on_demand": "-", "spot": "--", "reserved": "-.", "buy": ":", "mixed": (0, (3, 1, 1, 1))}


def terminal_page(page: Summary) -> RenderableType:
    """For a person at a terminal."""
    parts: list[RenderableType] = [Text(page.headline, style="bold"), facts(list(page.facts))]
    for table in page.tables:
        shown = RichTable(
            box=None, pad_edge=False, header_style="dim", title=table.title, title_justify="left", title_style="bold"
        )
        for index, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if index < table.left else "right", overflow="fold")
        for row in table.rows:
            shown.add_row(*row)
        parts += [Text(), shown]
    parts.append(Text())
    parts += [Text(f"! {note}", style="yellow") for note in page.notes]
    return Group(*parts)


def markdown_page(page: Summary) -> str:
    """One page of Markdown."""
    lines = ["# GPU capacity", "", f"**{_plain(page.headline)}**", ""]
    lines += [f"- {_plain(name)}: {_plain(value)}" for name, value in page.facts]
    for table in page.tables:
        lines += ["", f"## {_plain(table.title)}", "", _row(table.columns)]
        lines.append("|" + "|".join("---" if index < table.left else "---:" for index in range(len(table.columns))) + "|")
        lines += [_row(row) for row in table.rows]
    lines += ["", "## Notes", "", *(f"- {_plain(note)}" for note in page.notes), ""]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text that neither breaks a table nor becomes markup."""
    for character in "\\`*_[]<>|#":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(_plain(cell) for cell in cells) + " |"


def html_page(page: Summary, plots: dict[str, bytes]) -> str:
    """One HTML page without anything to load; `plots` are SVG images by name."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>GPU capacity</title>",
        f"<style>{_STYLE}</style><h1>GPU capacity</h1><p><b>{escape(page.headline)}</b></p><ul>",
        *(f"<li>{escape(name)}: {escape(value)}</li>" for name, value in page.facts),
        "</ul>",
    ]
    for index, table in enumerate(page.tables):
        parts.append(_html_table(table))
        if index == 0:
            parts += [image.decode()[image.decode().index("<svg") :] for image in plots.values()]
    parts += ["<h2>Notes</h2><ul>", *(f"<li>{escape(note)}</li>" for note in page.notes), "</ul></html>"]
    return "\n".join(parts) + "\n"


def _html_table(table: Table) -> str:
    def cell(tag: str, index: int, text: str) -> str:
        return f"<{tag}{' class=l' if index < table.left else ''}>{escape(text)}</{tag}>"

    head = "".join(cell("th", i, column) for i, column in enumerate(table.columns))
    body = "\n".join("<tr>" + "".join(cell("td", i, text) for i, text in enumerate(row)) + "</tr>" for row in table.rows)
    return f"<h2>{escape(table.title)}</h2><table><tr>{head}</tr>\n{body}</table>"


def plots(answer: CapacityAnswer, file_format: str) -> dict[str, bytes]:
    """Cost over time and use by month, as images in "png" or "svg" by name. Raises InputError where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise InputError("plots need matplotlib; install the extra: pip install 'tuneplan[capacity]'") from None
    series = {
        "cost": ("money spent so far, US dollars", {o.kind: _running([m.cash for m in o.months]) for o in answer.options}),
        "utilisation": (
            "GPUs working, % of GPU-hours paid",
            {o.kind: [100 * m.utilisation for m in o.months] for o in answer.options},
        ),
    }
    images = {}
    for name, (label, lines) in series.items():
        figure = Figure(figsize=(7.5, 4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for kind, values in lines.items():
            months = range(1, len(values) + 1)
            axes.plot(months, values, label=NAMES[kind], color=_COLOURS[kind], linestyle=_DASHES[kind], linewidth=2, marker=".")
        axes.set_xlabel("month")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.grid(alpha=0.3)
        if lines:
            axes.legend()
        stream = io.BytesIO()
        figure.savefig(stream, format=file_format, dpi=150, metadata={"Date": None} if file_format == "svg" else None)
        images[name] = stream.getvalue()
    return images


def _running(values: list[float]) -> list[float]:
    total = 0.0
    return [total := total + value for value in values]
