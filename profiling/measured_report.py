"""A measured step for a person at a terminal, beside its estimate."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuneplan.planner.report.terminal import facts
from tuneplan.planner.units import format_count, format_gib, format_seconds
from tuneplan.profiling.measured import Measured
from tuneplan.profiling.trace import stack


def measured_report(measured: Measured, origin: dict[str, Any]) -> RenderableType:
    """One measured step in full."""
    request, counts, timing = measured.subject.request(), measured.counts, measured.timing
    size = f" ({format_count(counts.total)} parameters)" if counts else ""
    trained = f"{counts.trainable:,} parameters ({100 * counts.trainable / counts.total:.3g} %)" if counts else "not known"
    accumulation = measured.subject.gradient_accumulation_steps
    header = [
        ("model", f"{measured.subject.id}{size}"),
        ("method", str(request["method_in_full"])),
        ("trained", trained),
        ("batch", f"{request['micro_batch_size']} x {request['seq_len']} tokens, {accumulation} micro-batch a step"),
        ("precision", f"{request['dtype']}, {request['precision']}; optimizer {request['optimizer']}"),
        ("checkpointing", str(request["gradient_checkpointing"])),
        ("attention", f"{measured.attention}; loss {request['loss']}"),
        ("device", f"{origin['device']['name']}, {measured.sharding.label}" if measured.on_cuda else origin["device"]["name"]),
        ("stack", stack()),
    ]
    parts: list[RenderableType] = [facts(header), Text(), Text(_headline(measured), style="bold"), Text(), _phases(measured)]
    seconds, tokens = timing.step_seconds, timing.tokens_per_second(measured.subject)
    ending = []
    if seconds is not None and tokens is not None:
        of = f"median of {len(timing.steps)}"
        ending.append(("step", f"{format_seconds(seconds)} ({of}), {tokens:,.0f} tokens/s"))
    if measured.process_peak_bytes is not None:
        ending.append(("host memory", f"{format_gib(measured.process_peak_bytes)} resident at most"))
    if measured.estimated is not None:
        ending.append(("estimated", _estimated(measured, measured.estimated["peak"])))
    if ending:
        parts += [Text(), facts(ending)]
    parts += [Text(f"! {warning}", style="yellow") for warning in measured.warnings]
    return Group(*parts)


def _headline(measured: Measured) -> str:
    if not measured.phases:
        return "Nothing was measured"
    reserved, device = measured.reserved_bytes, measured.device_bytes
    held = f", reserved {format_gib(reserved)}" if reserved is not None else ""
    process = f", process {format_gib(device)}" if device is not None else ""
    phase = measured.peak_phase.replace("_", " ")
    return f"Peak: allocated {format_gib(measured.allocated_bytes)}{held}{process}; in {phase}"


def _estimated(measured: Measured, peak: dict[str, Any]) -> str:
    if measured.failure is not None or not measured.allocated_bytes:
        figures = f"allocated {format_gib(peak['allocated_bytes'])}, reserved {format_gib(peak['reserved_bytes'])}"
        return f"{figures}, on the GPU {format_gib(peak['device_bytes'])}"
    text = f"allocated {format_gib(peak['allocated_bytes'])}{_gap(peak['allocated_bytes'], measured.allocated_bytes)}"
    if measured.reserved_bytes is not None:
        text += f", reserved {format_gib(peak['reserved_bytes'])}{_gap(peak['reserved_bytes'], measured.reserved_bytes)}"
    return text


def _gap(estimated: int, measured: int) -> str:
    return f" ({100 * (estimated / measured - 1):+.2f} %)" if measured else ""


def _phases(measured: Measured) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    columns = ["phase", "allocated", "at its end"]
    columns += ["reserved", "process"] if measured.on_cuda else ["resident"]
    if measured.estimated is not None:
        columns.append("estimated")
    for name in columns:
        table.add_column(name, justify="left" if name == "phase" else "right")
    planned = (measured.estimated or {}).get("phases", {})
    for name, phase in measured.phases.items():
        row = [name.replace("_", " "), format_gib(phase.peak_bytes), format_gib(phase.end_bytes)]
        further = (phase.reserved_peak_bytes, phase.process_bytes) if measured.on_cuda else (phase.resident_bytes,)
        row += ["-" if size is None else format_gib(size) for size in further]
        if measured.estimated is not None:
            row.append(format_gib(planned[name]["peak_bytes"]) if name in planned else "-")
        table.add_row(*row)
    return table
