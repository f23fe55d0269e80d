"""Live bytes over a step, drawn as a picture or written as a snapshot for PyTorch's memory visualizer."""

import io
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph.tensor import CATEGORIES
from tuneplan.planner.units import GIB, format_gib
from tuneplan.profiling import snapshot as snapshots
from tuneplan.profiling.files import write_atomic
from tuneplan.profiling.timeline import Timeline
from tuneplan.profiling.trace import Traced

POINTS = 1600
PICTURES = (".png", ".svg")
COLOURS = ("#4c72b0", "#c44e9c", "#ccb974", "#55a868", "#64b5cd", "#c44e52", "#8c8c8c")


def writer(timeline: Path | None, real: Path | None) -> Callable[[Traced], str]:
    """What to do with a trace; files are checked now, before the trace is made.

    Args:
        timeline: to write: .png or .svg for a picture, .pickle for the visualizer.
        real: a snapshot of a real run, to lay beside it.

    Returns:
        A function of the trace that writes the file and gives a line about it.

    Raises:
        InputError: an unknown kind of file, a folder that is not there, a snapshot that cannot be read.
    """
    if timeline is not None:
        if timeline.suffix not in (*PICTURES, ".pickle"):
            raise InputError(f"--timeline {timeline} ends in neither .png, .svg nor .pickle; use one of them")
        if not timeline.parent.is_dir():
            raise InputError(f"--timeline {timeline}: the folder {timeline.parent} does not exist; make it first")
        if timeline.suffix in PICTURES:
            _matplotlib()
    measured = snapshots.read(real) if real is not None else None

    def write(traced: Traced) -> str:
        lines = []
        if timeline is not None and timeline.suffix == ".pickle":
            if traced.reserved is None:
                raise InputError("the trace was extended over layers and has no addresses; write a .png instead")
            write_atomic(timeline, pickle.dumps(snapshots.snapshot(traced.reserved)))
            lines.append(f"wrote {timeline}; open it at https://pytorch.org/memory_viz")
        elif timeline is not None:
            write_atomic(timeline, _picture(traced, measured, timeline.suffix[1:]))
            lines.append(f"wrote {timeline}")
        if measured is not None:
            gap = 100 * (traced.step.peak_bytes / measured.peak_bytes - 1) if measured.peak_bytes else 0.0
            lines.append(f"peak of the snapshot {format_gib(measured.peak_bytes)}; the trace is {gap:+.2f} % off")
        return "; ".join(lines)

    return write


def _matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("a picture needs matplotlib; pip install 'tuneplan[profile]', or write a .pickle") from error


def levels(timeline: Timeline, start: int, stop: int, points: int = POINTS) -> tuple[list[int], list[list[int]]]:
    """Live bytes by category at up to `points` moments between two indices of the log, each the highest of its stretch.

    Returns:
        The indices of the moments, and for each category its bytes at them.
    """
    now = [0] * len(CATEGORIES)
    width = max(1, (stop - start) // points)
    moments: list[int] = []
    series: list[list[int]] = [[] for _ in CATEGORIES]
    best, best_total, best_index = list(now), -1, start
    for index, (born, allocation) in enumerate(timeline.log[:stop]):
        now[allocation.category] += allocation.size_bytes if born else -allocation.size_bytes
        if index < start:
            continue
        total = sum(now)
        if total > best_total:
            best, best_total, best_index = list(now), total, index
        if (index - start) % width == width - 1 or index == stop - 1:
            moments.append(best_index)
            for values, value in zip(series, best, strict=True):
                values.append(value)
            best_total = -1
    return moments, series


def _picture(traced: Traced, measured: snapshots.Measured | None, kind: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    timeline = traced.step.timeline
    start, _ = timeline.shown["forward"]
    _, stop = timeline.shown["optimizer_step"]
    moments, series = levels(timeline, start, stop)
    figure = Figure(figsize=(11, 7 if measured else 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 if measured else 1, 1, squeeze=False)[:, 0]
    shown = [(name, values) for name, values in zip(CATEGORIES, series, strict=True) if any(values)]
    colours = [COLOURS[CATEGORIES.index(name)] for name, _ in shown]
    axis = axes[0]
    scaled = [[value / GIB for value in values] for _, values in shown]
    axis.stackplot(moments, *scaled, labels=[name.replace("_", " ") for name, _ in shown], colors=colours, step="post")
    for name in ("forward", "backward", "optimizer_step"):
        first, last = timeline.shown[name]
        axis.axvline(first, color="black", linewidth=0.6)
        axis.text((first + last) / 2, 1.01, name.replace("_", " "), transform=axis.get_xaxis_transform(), ha="center", fontsize=8)
    axis.set_ylabel("live GiB")
    axis.set_xlabel("births and deaths of storages, in order")
    axis.set_xlim(moments[0], moments[-1])
    top = max(range(len(moments)), key=lambda i: sum(values[i] for values in series))
    axis.axhline(traced.step.peak_bytes / GIB, color="black", linewidth=0.6, linestyle=":")
    at = traced.phases[traced.step.peak_phase].op.rpartition(".")[0].rpartition(".")[2]
    place = {"xytext": (8, -3), "textcoords": "offset points", "va": "top", "fontsize": 8}
    axis.annotate(f"{format_gib(traced.step.peak_bytes)} at {at}", (moments[top], traced.step.peak_bytes / GIB), **place)
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    axis.set_title(
        f"{traced.subject.id}, {traced.subject.request()['method']}: peak {format_gib(traced.peak.peak_bytes)}", pad=18
    )
    if measured is not None:
        _measured_panel(axes[1], measured.live_bytes)
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=130)
    return out.getvalue()


def _measured_panel(panel: Any, live: Sequence[int]) -> None:
    width = max(1, len(live) // POINTS)
    panel.plot(
        range(0, len(live), width),
        [max(live[i : i + width]) / GIB for i in range(0, len(live), width)],
        color="black",
        linewidth=0.8,
    )
    panel.set_ylabel("live GiB, measured")
    panel.set_xlabel("events of the snapshot, in order")
    panel.set_ylim(bottom=0)
