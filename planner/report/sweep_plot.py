"""A sweep as a picture: memory by component, and beside it speed or cost."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tuneplan.planner.errors import InputError
from tuneplan.planner.estimate import Estimate
from tuneplan.planner.plan import Answer
from tuneplan.planner.report.terminal import plan_levels
from tuneplan.planner.sweep import Axis, Point
from tuneplan.planner.units import GIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    "weights": "#4c72b0",
    "gradients": "#8172b3",
    "optimizer_states": "#ccb974",
    "activations": "#55a868",
    "logits": "#64b5cd",
    "temporary": "#c44e52",
    "kv_cache": "#937860",
    "fragmentation, runtime": "#b0b0b0",
}
_LINE = "#dd8452"


def draw_estimates(axis: Axis, points: Sequence[Point[Estimate]], path: str) -> None:
    """Memory by component and tokens a second against the values. Raises InputError without matplotlib or a place to write."""
    shown = [(point.value, point.answer) for point in points if point.answer is not None]
    values = [value for value, _ in shown]
    stacks = [
        {
            **{name: size for name, size in found.components.items() if name != "runtime"},
            "fragmentation, runtime": found.device_bytes - found.allocated_bytes,
        }
        for _, found in shown
    ]
    rates = [found.time.tokens_per_second if found.time else None for _, found in shown]
    capacity = shown[0][1].request.capacity_bytes
    _draw(axis, values, stacks, capacity, ("tokens/s (modelled)", rates), f"{shown[0][1].request.spec.id}", path)


def draw_answers(axis: Axis, points: Sequence[Point[Answer]], path: str) -> None:
    """Memory and cost of the recommended plan against the values. Raises as `draw_estimates`."""
    shown = [(point.value, point.answer.plans[0]) for point in points if point.answer is not None and point.answer.plans]
    if not shown:
        raise InputError("--plot has nothing to draw: no value of the sweep has a plan that fits; look at the table")
    stacks: list[dict[str, int]] = []
    for _, plan in shown:
        levels = plan_levels(plan)
        rest = levels.pop("fragmentation") + levels.pop("runtime")
        stacks.append({**levels, "fragmentation, runtime": rest})
    costs = [None if plan.usd is None else float(plan.usd) for _, plan in shown]
    values = [value for value, _ in shown]
    _draw(axis, values, stacks, None, ("cost of the cheapest plan [USD]", costs), shown[0][1].request.spec.id, path)


def _draw(
    axis: Axis,
    values: list[int],
    stacks: list[dict[str, int]],
    capacity: int | None,
    second: tuple[str, list[float | None]],
    title: str,
    path: str,
) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("--plot needs matplotlib; install the extra: pip install 'tuneplan[plot]'") from None
    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    memory, other = figure.subplots(1, 2)
    figure.suptitle(f"{title}: {axis.option}", fontsize=11)
    _memory(memory, values, stacks, capacity)
    places = [place for place, y in enumerate(second[1]) if y is not None]
    other.plot(places, [y for y in second[1] if y is not None], marker="o", color=_LINE)
    other.set_ylim(bottom=0)
    other.set_ylabel(second[0])
    for panel in (memory, other):
        panel.set_xticks(range(len(values)), [f"{value:,}" for value in values], rotation=45, fontsize=8)
        panel.set_xlabel(axis.option)
        panel.grid(axis="y", alpha=0.3)
        panel.set_axisbelow(True)
    try:
        figure.savefig(path, dpi=130, metadata={"Date": None} if path.lower().endswith(".svg") else None)
    except (OSError, ValueError) as error:
        raise InputError(f"{path!r} cannot be written: {error}; choose another file that ends in .png or .svg") from None


def _memory(panel: "Axes", values: list[int], stacks: list[dict[str, int]], capacity: int | None) -> None:
    start = [0.0] * len(values)
    for name, colour in _COLOURS.items():
        sizes = [stack.get(name, 0) / GIB for stack in stacks]
        if any(sizes):
            panel.bar(range(len(values)), sizes, 0.7, bottom=start, color=colour, label=name.replace("_", " "))
        start = [a + b for a, b in zip(start, sizes, strict=True)]
    if capacity is not None:
        panel.axhline(capacity / GIB, color="black", linestyle="--", linewidth=1, label="usable")
    panel.set_ylabel("peak of one GPU [GiB]")
    panel.legend(fontsize=7)
