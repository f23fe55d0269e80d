"""A sweep as a table and as JSON."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuneplan.planner.estimate import Estimate
from tuneplan.planner.plan import Answer, Plan
from tuneplan.planner.report.json_report import plan_json
from tuneplan.planner.sweep import Axis, Limits, Point, fits
from tuneplan.planner.units import SECONDS_PER_HOUR, format_gib, format_seconds, format_usd


def estimates_json(axis: Axis, points: Sequence[Point[Estimate]], limits: Limits | None) -> dict[str, Any]:
    """A sweep of one configuration."""
    rows: list[dict[str, Any]] = []
    for point in points:
        found = point.answer
        row: dict[str, Any] = {axis.name: point.value}
        if found is None:
            rows.append({**row, "reason": point.reason})
            continue
        time = found.time
        rows.append(
            {
                **row,
                "peak": found.peak_json(),
                "components": found.components,
                "step_seconds": time.seconds if time else None,
                "tokens_per_second": time.tokens_per_second if time else None,
                "fits": fits(found) if found.request.capacity_bytes is not None else None,
            }
        )
    first = next(point.answer for point in points if point.answer is not None)
    return {
        "source": first.source,
        "request": {**first.request.to_json(), axis.name: None},
        "sweep": axis.option,
        "points": rows,
        "limits": None
        if limits is None
        else {
            "micro_batch_size": limits.micro_batch_size,
            "seq_len": limits.seq_len,
            "max_position_embeddings": limits.context,
        },
    }


def answers_json(axis: Axis, points: Sequence[Point[Answer]]) -> dict[str, Any]:
    """A sweep of the search: the recommended plan at every value."""
    rows: list[dict[str, Any]] = []
    for point in points:
        row: dict[str, Any] = {axis.name: point.value}
        if point.answer is None or not point.answer.plans:
            rows.append({**row, "recommended": None, "reason": point.reason or _why(point.answer)})
        else:
            rows.append({**row, "recommended": plan_json(point.answer.plans[0])})
    return {"sweep": axis.option, "points": rows}


def _why(answer: Answer | None) -> str:
    return answer.rejected[0].reason if answer is not None and answer.rejected else "nothing fits"


def estimates_table(axis: Axis, points: Sequence[Point[Estimate]], limits: Limits | None) -> RenderableType:
    """A sweep of one configuration at a terminal."""
    table = _table((axis.option, "peak", "activations", "logits", "step", "tokens/s", "fits"))
    notes: list[RenderableType] = []
    for point in points:
        found = point.answer
        if found is None:
            table.add_row(f"{point.value:,}", *["-"] * 6)
            notes.append(Text(f"{point.value:,}: {point.reason}", style="dim"))
            continue
        time, capacity = found.time, found.request.capacity_bytes
        seconds = time.seconds if time else None
        rate = time.tokens_per_second if time else None
        over = "-" if capacity is None else "yes" if fits(found) else f"no, +{format_gib(found.device_bytes - capacity)}"
        table.add_row(
            f"{point.value:,}",
            format_gib(found.device_bytes),
            format_gib(found.components["activations"]),
            format_gib(found.components["logits"]),
            format_seconds(seconds) if seconds else "-",
            f"{rate:,.0f}" if rate else "-",
            over,
        )
    if limits is not None:
        notes.append(Text(_limits(limits)))
    return Group(table, *notes)


def _limits(limits: Limits) -> str:
    length = f"{limits.seq_len:,} tokens" if limits.seq_len else "none"
    if limits.seq_len == limits.context:
        length += " (the model's whole context)"
    batch = f"{limits.micro_batch_size:,}" if limits.micro_batch_size else "none"
    return f"All else as asked: longest sequence that fits {length}; largest micro-batch that fits {batch}."


def answers_table(axis: Axis, points: Sequence[Point[Answer]]) -> RenderableType:
    """A sweep of the search at a terminal."""
    names = (axis.option, "method", "GPUs", "layout", "batch", "ckpt", "peak", "tokens/s", "time", "cost")
    table = _table(names, left=(1, 2, 3, 4, 5))
    notes: list[RenderableType] = []
    for point in points:
        if point.answer is None or not point.answer.plans:
            table.add_row(f"{point.value:,}", *["-"] * (len(names) - 1))
            notes.append(Text(f"{point.value:,}: {point.reason or _why(point.answer)}", style="dim"))
        else:
            table.add_row(f"{point.value:,}", *_plan_row(point.answer.plans[0]))
    return Group(table, *notes)


def _plan_row(plan: Plan) -> tuple[str, ...]:
    request, settings = plan.request, plan.request.settings
    rate = plan.time.tokens_per_second if plan.time else None
    return (
        request.method.name,
        f"{plan.gpu_count} x {plan.target.label}" if plan.target.instance is None else plan.target.instance.id,
        request.sharding.label,
        f"{settings.micro_batch_size} x {request.gradient_accumulation_steps}",
        "on" if settings.gradient_checkpointing != "off" else "off",
        format_gib(plan.device_bytes),
        f"{rate:,.0f}" if rate else "-",
        format_seconds(plan.hours * SECONDS_PER_HOUR) if plan.hours is not None else "-",
        format_usd(plan.usd) if plan.usd is not None else "-",
    )


def _table(names: Sequence[str], left: Sequence[int] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, name in enumerate(names):
        table.add_column(name, justify="left" if index in left else "right", overflow="fold" if index in left else "ellipsis")
    return table
