"""Traced and measured steps for a person at a terminal."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuneplan.planner.graph.tensor import CATEGORIES
from tuneplan.planner.report.terminal import breakdown, facts
from tuneplan.planner.units import format_count, format_gib
from tuneplan.profiling.timeline import Holder
from tuneplan.profiling.trace import Traced, stack
from tuneplan.profiling.verify import Gap, Verification

MOST_HOLDERS = 10


def trace_report(traced: Traced) -> RenderableType:
    """One traced step in full."""
    request, counts, peak = traced.subject.request(), traced.counts, traced.peak
    header = [
        ("model", f"{traced.subject.id} ({format_count(counts.total)} parameters)"),
        ("method", str(request["method_in_full"])),
        ("trained", f"{counts.trainable:,} parameters ({100 * counts.trainable / counts.total:.3g} %)"),
        ("batch", f"{request['micro_batch_size']} x {request['seq_len']} tokens"),
        ("precision", f"{request['dtype']}, {request['precision']}; optimizer {request['optimizer']}"),
        ("checkpointing", str(request["gradient_checkpointing"])),
        ("attention", f"{request['attention']}; loss {request['loss']}"),
        ("stack", stack()),
        ("traced in", f"{traced.seconds:.1f} s"),
    ]
    levels = {
        **dict(zip(CATEGORIES, peak.levels, strict=True)),
        "fragmentation": traced.reserved_bytes - peak.peak_bytes,
        "runtime": traced.runtime.total_bytes,
    }
    device = traced.reserved_bytes + traced.runtime.total_bytes
    parts: list[RenderableType] = [
        facts(header),
        Text(),
        Text(f"Peak {format_gib(device)} on the GPU", style="bold"),
        Text(
            f"allocated {format_gib(peak.peak_bytes)}, reserved {format_gib(traced.reserved_bytes)}; "
            f"in {traced.peak_phase.replace('_', ' ')} at {peak.op}"
        ),
        breakdown(levels, device),
        Text(),
        _phases(traced),
        Text(),
        Text("Largest at the peak", style="bold"),
        holders_table(traced.holders()[:MOST_HOLDERS]),
    ]
    parts += [Text(f"! {warning}", style="yellow") for warning in traced.warnings]
    return Group(*parts)


def _phases(traced: Traced) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("phase", "peak", "at its end", "op at the peak"):
        table.add_column(name, justify="right" if name in ("peak", "at its end") else "left")
    for name, phase in traced.phases.items():
        table.add_row(name.replace("_", " "), format_gib(phase.peak_bytes), format_gib(phase.end_bytes), phase.op)
    return table


def holders_table(found: list[Holder]) -> Table:
    """Who holds what."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("bytes", "storages", "category", "module", "op", "line"):
        table.add_column(name, justify="right" if name in ("bytes", "storages") else "left", overflow="fold")
    for h in found:
        line = "/".join(h.line.split("/")[-2:])
        table.add_row(format_gib(h.size_bytes), str(h.count), h.category.replace("_", " "), h.module, h.op, line)
    return table


def verification_report(verification: Verification) -> RenderableType:
    """Estimated beside traced."""
    gap = verification.peak
    return Group(
        Text(),
        Text(f"Estimated {format_gib(gap.estimated_bytes)} against traced: {gap.percent:+.3f} % at the peak", style="bold"),
        _gaps("phase", verification.phases),
        Text(),
        _gaps("component", verification.components),
        Text(),
        _gaps("kept by", verification.modules[:MOST_HOLDERS]),
    )


def _gaps(title: str, gaps: tuple[Gap, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(title)
    for name in ("estimated", "traced", "difference"):
        table.add_column(name, justify="right")
    for gap in gaps:
        row = (f"{size:,}" for size in (gap.estimated_bytes, gap.traced_bytes))
        table.add_row(gap.name.replace("_", " "), *row, f"{gap.difference_bytes:+,} ({gap.percent:+.3f} %)")
    return table
