"""A comparison of methods as a picture: one panel for each dimension, one row for each method."""

from statistics import median
from typing import TYPE_CHECKING, Any

from tuneplan.planner.compare import Comparison, Row
from tuneplan.planner.errors import InputError
from tuneplan.planner.units import GIB, GIGA, KILO, MIB, format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = 6
INCHES_A_ROW = 0.34
WIDTH_INCHES = 17.0
MARGIN_INCHES = 2.6
HEIGHT = 0.62
CUT = 2.5
"""The memory axis ends at so many times the median, so that one large method does not flatten the others."""
STACK = {
    "weights": ("weights", "#4c72b0"),
    "gradients": ("gradients", "#8172b3"),
    "optimizer_states": ("optimizer states", "#ccb974"),
    "activations": ("activations", "#55a868"),
    "logits": ("logits", "#64b5cd"),
    "temporary": ("temporary", "#c44e52"),
}
OTHER = ("fragmentation, runtime", "#b0b0b0")
ONE, TWO = "#4c72b0", "#dd8452"


def draw(comparison: Comparison, path: str) -> None:
    """Write the picture; its kind follows from the name's ending. Raises InputError without matplotlib or a place to write."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("--plot needs matplotlib; install the extra: pip install 'tuneplan[plot]'") from None
    rows = comparison.rows[::-1]
    figure = Figure(figsize=(WIDTH_INCHES, MARGIN_INCHES + INCHES_A_ROW * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, PANELS, sharey=True)
    common = comparison.settings
    gpu = comparison.job.targets[0].label
    figure.suptitle(
        f"{comparison.job.spec.id} on {gpu}: memory and compute at {common.micro_batch_size} x {common.seq_len} tokens, "
        f"checkpointing {common.gradient_checkpointing}; cost of {format_count(comparison.job.tokens)} tokens",
        fontsize=11,
    )
    for axis, panel in zip(axes, (_memory, _compute, _cost, _latency, _checkpoint, _quality), strict=True):
        panel(axis, rows)
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(rows)), [row.method.name for row in rows])
    try:
        figure.savefig(path, dpi=130, metadata={"Date": None} if path.lower().endswith(".svg") else None)
    except OSError as error:
        raise InputError(f"{path!r} cannot be written: {error.strerror or error}; choose another file") from None


def _memory(axis: "Axes", rows: tuple[Row, ...]) -> None:
    places = range(len(rows))
    start = [0.0] * len(rows)
    for name, (label, colour) in STACK.items():
        sizes = [row.estimate.components[name] / GIB for row in rows]
        axis.barh(places, sizes, HEIGHT, left=start, color=colour, label=label)
        start = [a + b for a, b in zip(start, sizes, strict=True)]
    rest = [row.estimate.device_bytes / GIB - a for row, a in zip(rows, start, strict=True)]
    axis.barh(places, rest, HEIGHT, left=start, color=OTHER[1], label=OTHER[0])
    totals = [row.estimate.device_bytes / GIB for row in rows]
    end = min(max(totals), CUT * median(totals))
    for place, total in enumerate(totals):
        axis.annotate(f" {total:,.1f}", (min(total, end), place), va="center", fontsize=7)
    capacity = rows[0].estimate.request.capacity_bytes
    if capacity is not None and capacity / GIB < end:
        axis.axvline(capacity / GIB, color="black", linestyle="--", linewidth=1, label="usable")
    axis.set_xlim(0, end)
    _finish(axis, "training peak, one GPU [GiB]", legend=True, room=1.2)


def _compute(axis: "Axes", rows: tuple[Row, ...]) -> None:
    flops = [row.flops_per_token / GIGA for row in rows]
    axis.barh(range(len(rows)), flops, HEIGHT, color=ONE, label="forward, backward")
    again = [row.recomputed_flops_per_token / GIGA for row in rows]
    axis.barh(range(len(rows)), again, HEIGHT, left=flops, color=TWO, label="recomputed")
    _finish(axis, "training compute [GFLOP/token]", legend=True)


def _cost(axis: "Axes", rows: tuple[Row, ...]) -> None:
    priced = all(row.plan is None or row.plan.usd is not None for row in rows)
    values = [_amount(row, priced) for row in rows]
    axis.barh(range(len(rows)), [value or 0.0 for value in values], HEIGHT, color=ONE)
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        count = f" {row.plan.gpu_count} GPU{'s' if row.plan.gpu_count > 1 else ''}" if row.plan else " no plan"
        axis.annotate(count, (value or 0.0, place), va="center", fontsize=7)
    _finish(axis, "cost of the best plan [$]" if priced else "hours of the best plan", room=1.25)


def _amount(row: Row, priced: bool) -> float | None:
    if row.plan is None:
        return None
    if priced:
        return None if row.plan.usd is None else float(row.plan.usd)
    return row.plan.hours


def _latency(axis: "Axes", rows: tuple[Row, ...]) -> None:
    half = HEIGHT / 2
    for place, row in enumerate(rows):
        if row.merged is not None:
            axis.barh(place + half / 2, row.merged.device_seconds * KILO, half, color=ONE, label="merged")
        if row.unmerged is not None:
            axis.barh(place - half / 2, row.unmerged.device_seconds * KILO, half, color=TWO, label="unmerged")
    _finish(axis, "decoded token, captured [ms]", legend=True, wide=[r.unmerged.device_seconds for r in rows if r.unmerged])


def _checkpoint(axis: "Axes", rows: tuple[Row, ...]) -> None:
    sizes = [row.estimate.checkpoint_bytes / MIB for row in rows]
    axis.barh(range(len(rows)), sizes, HEIGHT, color=ONE)
    axis.set_xscale("log")
    for place, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        axis.annotate(f" {row.adapters_per_model:,}", (size, place), va="center", fontsize=7)
    _finish(axis, "checkpoint [MiB]; how many fit a model", room=8)


def _quality(axis: "Axes", rows: tuple[Row, ...]) -> None:
    for place, row in enumerate(rows):
        found = row.quality
        if found is None or row.method.name == "full":
            words = "no evidence" if found is None else "the baseline"
            axis.annotate(words, (0.02, place), va="center", fontsize=7, color="gray")
            continue
        axis.plot([found.lowest, found.highest], [place, place], color=ONE, linewidth=2)
        axis.plot([found.median], [place], "o", color=ONE, markersize=5)
        axis.annotate(f"  {found.median:.2f} ({found.count})", (found.highest, place), va="center", fontsize=7)
    axis.axvline(1, color="black", linestyle="--", linewidth=1)
    axis.set_xlim(0, max([row.quality.highest for row in rows if row.quality], default=1.0))
    _finish(axis, "published score / full fine-tuning", room=1.35)


def _finish(axis: "Axes", title: str, legend: bool = False, room: float = 1.0, wide: "list[float] | None" = None) -> None:
    """Title, legend and room for labels; a logarithmic scale where values differ widely."""
    axis.set_title(title, fontsize=9)
    if wide and max(wide) > 10 * min(wide):
        axis.set_xscale("log")
    if room > 1:
        low, high = axis.get_xlim()
        axis.set_xlim(low, high * room)
    if legend:
        handles, labels = axis.get_legend_handles_labels()
        first: dict[str, Any] = {}
        for handle, label in zip(handles, labels, strict=True):
            first.setdefault(label, handle)
        axis.legend(first.values(), first.keys(), fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.05), ncols=2)
