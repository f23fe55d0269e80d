"""A session of kernel benchmarks for a terminal. Figures come ready in the document of `plan bench --json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuneplan.planner.units import format_gib

_COLUMNS = ("implementation", "device", "call", "share of copy", "of roofline", "ratio", "peak", "")

_THAN = {"faster": " than {}", "slower": " than {}", "no difference": ""}


def seconds(value: float | None) -> str:
    """Microseconds, or nothing."""
    return "" if value is None else f"{value * 1e6:,.1f} us"


def bench_report(document: Mapping[str, Any]) -> RenderableType:
    """Ceilings, then a table for each case, then what the time did not reach."""
    ceilings, device = document["ceilings"], document["provenance"]["device"]
    parts: list[RenderableType] = [
        Text(f"{device['name']} - {document['clock']}", style="bold"),
        Text(
            f"copy {ceilings['copy_bytes_per_second'] / 1e9:,.1f} GB/s ({ceilings['copy_bytes'] / 1e9:.2f} GB read and written), "
            f"bf16 product {ceilings['product_size']}^3 {ceilings['product_flops_per_second'] / 1e12:,.2f} TFLOP/s"
        ),
    ]
    run = [row for row in document["rows"] if row["state"] != "not run"]
    for label in dict.fromkeys(row["key"].rpartition(" / ")[0] for row in run):
        parts += [Text(), Text(label, style="bold"), _table([row for row in run if row["key"].rpartition(" / ")[0] == label])]
    parts += _not_run(document["rows"])
    if document["left"]:
        parts += [Text(), Text(f"the time did not reach {len(document['left'])} cases; --seconds gives more")]
    if document["done_before"]:
        parts += [Text(), Text(f"{document['done_before']} cases have rows already")]
    return Group(*parts)


def _not_run(rows: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """What was not run, each reason once."""
    reasons = dict.fromkeys((row["implementation"], row["reason"]) for row in rows if row["state"] == "not run")
    lines: list[RenderableType] = [Text(f"not run: {name}: {reason}", style="dim") for name, reason in reasons]
    return [Text(), *lines] if lines else []


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, name in enumerate(_COLUMNS):
        last = index == len(_COLUMNS) - 1
        table.add_column(name, justify="left" if index == 0 or last else "right", no_wrap=not last, overflow="fold")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Mapping[str, Any]) -> list[str]:
    name = row["implementation"]
    if row["state"] != "measured":
        return [name, "", "", "", "", "", "", f"{row['state']}: {row['reason']}"]
    times = [(row[key] or {}).get("median") for key in ("device_seconds", "call_seconds")]
    versus = row["versus"]
    ratio = f"{versus['value']:.2f}x" if versus else "1"
    note = versus["verdict"] + _THAN[versus["verdict"]].format(versus["implementation"]) if versus else ""
    return [
        name,
        *map(seconds, times),
        f"{row['share_of_copy']:.1%}",
        f"{row['share_of_roofline']:.1%}",
        ratio,
        "" if row["peak_bytes"] is None else format_gib(row["peak_bytes"]),
        "; ".join(text for text in (note, row["reason"]) if text),
    ]


def listing_report(kernels: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Kernels, implementations and cases."""
    parts: list[RenderableType] = []
    for kernel in kernels:
        parts.append(Text(kernel["kernel"], style="bold"))
        table = Table(box=None, pad_edge=False, show_header=False)
        for one in kernel["implementations"]:
            table.add_row("", one["name"], f"not run: {one['missing']}" if one["missing"] else one["basis"])
        parts.append(table)
        parts += [Text(f"  {label}", style="dim") for label in kernel["cases"]]
        parts.append(Text())
    return Group(*parts)
