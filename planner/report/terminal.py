"""Estimates and answers for a person at a terminal. Figures come ready; nothing is computed here but widths of bars."""

import io
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuneplan.planner.graph.tensor import CATEGORIES
from tuneplan.planner.methods.compose import explicit
from tuneplan.planner.models.tasks import described
from tuneplan.planner.report.config_account import account, config_rows
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.units import format_count, format_gib, format_seconds

if TYPE_CHECKING:
    from tuneplan.planner.estimate import Estimate
    from tuneplan.planner.plan import Plan
    from tuneplan.planner.savings import Saving

BAR_WIDTH = 32
NARROWEST = 100
_COLOURS = {
    "weights": "blue",
    "gradients": "magenta",
    "optimizer_states": "yellow",
    "activations": "green",
    "logits": "cyan",
    "temporary": "red",
    "kv_cache": "white",
    "fragmentation": "bright_black",
    "runtime": "bright_black",
    "adapters": "magenta",
    "cuda_graphs": "bright_black",
}


def console(record: bool = False, quiet: bool = False) -> Console:
    """A console on stdout; as wide as the terminal, or 100 columns where there is none. `quiet`: only record."""
    width = None if os.isatty(1) else int(os.environ.get("COLUMNS", NARROWEST))
    stream = io.StringIO() if quiet else None
    return Console(width=width, record=record, file=stream, highlight=False, emoji=False, markup=False)


def _bar(size: int, whole: int, colour: str) -> Text:
    filled = round(BAR_WIDTH * size / whole) if whole else 0
    return Text("#" * filled if size and filled else ("." if size else ""), style=colour)


def breakdown(levels: dict[str, int], whole: int) -> Table:
    """Bytes by component with a bar for each share of the whole."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(justify="right", style="dim")
    table.add_column()
    for name, size in levels.items():
        if size:
            share = f"{100 * size / whole:.0f} %"
            table.add_row(name.replace("_", " "), format_gib(size), share, _bar(size, whole, _COLOURS[name]))
    return table


def facts(rows: list[tuple[str, str]]) -> Table:
    """Names and values, one pair a line."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def estimate_report(estimate: "Estimate") -> RenderableType:
    """One configuration in full."""
    request, network = estimate.request, estimate.network
    s = request.settings
    steps = request.gradient_accumulation_steps
    trained = network.trainable_parameters / network.total_parameters
    kernel = network.notes["attention_kernel"]
    header = [
        ("model", f"{request.spec.id} ({format_count(network.total_parameters)} parameters)"),
        *described(request.spec, s.target_length, s.images, s.image_size),
        ("method", explicit(request.method, ", ")),
        ("trained", f"{network.trainable_parameters:,} parameters ({100 * trained:.3g} %)"),
        ("batch", f"{s.micro_batch_size} x {s.seq_len} tokens, {steps} micro-batch{'es' if steps > 1 else ''} a step"),
        *([] if s.objective.plain else [("training", _training(s))]),
        ("precision", f"{s.dtype}, {s.precision}; optimizer {request.optimizer.name}"),
        ("checkpointing", s.gradient_checkpointing),
        ("attention", f"{s.attention} -> {kernel} kernel; loss {s.loss}"),
        ("loop", _loop(s)),
        ("GPUs", f"{request.gpu.name if request.gpu else 'not named'}, {request.sharding.label}"),
    ]
    levels = {
        **{k: v for k, v in estimate.components.items() if k != "runtime"},
        "fragmentation": estimate.reserved_bytes - estimate.allocated_bytes,
        "runtime": estimate.runtime.total_bytes,
    }
    header += config_rows(request.config)
    parts: list[RenderableType] = [
        facts(header),
        Text(),
        Text(f"Peak {format_gib(estimate.device_bytes)} on each GPU", style="bold"),
        Text(
            f"allocated {format_gib(estimate.allocated_bytes)}, reserved {format_gib(estimate.reserved_bytes)}; "
            f"in {estimate.memory.peak_phase.replace('_', ' ')} at {estimate.memory.peak.op}"
        ),
        Text(_interval(estimate), style="dim"),
        breakdown(levels, estimate.device_bytes),
        Text(),
        _phases(estimate),
        Text(),
        facts(_outcome(estimate)),
    ]
    parts += savings_lines(estimate.savings)
    parts += [Text(f"! {warning}", style="yellow") for warning in estimate.warnings]
    parts += account(request.config)
    return Group(*parts)


def _interval(estimate: "Estimate") -> str:
    around = estimate.interval
    low, high = format_gib(around.low_bytes), format_gib(around.high_bytes)
    return f"by the errors of published runs: {low} to {high}, with a chance of {100 * around.chance:.0f} % to be above"


def savings_lines(savings: "Sequence[Saving]") -> list[RenderableType]:
    """What switches would do, one a line; those that change nothing are left out."""
    shown = [s for s in savings if s.saved_bytes or s.saved_seconds]
    if not shown:
        return []
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("switches, each alone", overflow="fold")
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("time of an update", justify="right", no_wrap=True)
    table.add_column("effect", no_wrap=True)
    for saving in shown:
        seconds = "-" if saving.saved_seconds is None else _change(saving.saved_seconds, format_seconds)
        effect = f"{saving.switch.effect}{', does not fit' if saving.fits is False else ''}"
        table.add_row(saving.switch.words, _change(saving.saved_bytes, format_gib), seconds, effect)
    return [Text(), table]


def _change(saved: float, shown: Callable[[Any], str]) -> str:
    """A saving as a change: `-1.2 GiB` where that much is saved."""
    text = shown(abs(saved))
    return "0" if text.split()[0].strip("0.") == "" else f"{'-' if saved > 0 else '+'}{text}"


def _training(settings: Settings) -> str:
    """What is trained towards, with its options."""
    objective = settings.objective
    pieces = [objective.name]
    if objective.sequences > 1:
        pieces.append("pairs, two sequences each")
    if objective.name in ("dpo", "grpo"):
        pieces += [f"reference {objective.reference}", f"{objective.completion_length or settings.seq_len - 1} tokens scored"]
    if objective.num_generations:
        pieces += [f"{objective.num_generations} completions of a prompt", f"{objective.generated} generated at once"]
    return ", ".join(pieces)


def _loop(settings: Settings) -> str:
    """What the training loop holds on to."""
    kept = "kept until the next forward" if settings.keep_outputs else "dropped after the loss (as the Trainer does)"
    cache = "; keys and values cached" if settings.use_cache and settings.gradient_checkpointing == "off" else ""
    return f"model outputs {kept}{cache}"


def _phases(estimate: "Estimate") -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("phase", "peak", "at its end", "op at the peak"):
        table.add_column(name, justify="right" if name in ("peak", "at its end") else "left")
    for name, phase in estimate.memory.phases.items():
        table.add_row(name.replace("_", " "), format_gib(phase.peak_bytes), format_gib(phase.end_bytes), phase.op)
    return table


def _outcome(estimate: "Estimate") -> list[tuple[str, str]]:
    rows = [
        ("checkpoint", format_gib(estimate.checkpoint_bytes)),
        ("host memory", f"{format_gib(estimate.host_bytes)} (modelled)"),
    ]
    time = estimate.time
    if time is not None and time.seconds is not None and time.tokens_per_second is not None:
        rows.append(("step", f"{format_seconds(time.seconds)}, {time.tokens_per_second:,.0f} tokens/s (modelled)"))
    capacity = estimate.request.capacity_bytes
    if capacity is not None:
        fits = estimate.device_bytes <= capacity
        left = format_gib(abs(capacity - estimate.device_bytes))
        rows.append(("fits", f"yes, {left} left" if fits else f"no, short by {left}"))
    return rows


def plan_levels(plan: "Plan") -> dict[str, int]:
    """A plan's bytes by component, what the allocator and the process add included."""
    levels = dict(zip(CATEGORIES, plan.memory.peak.levels, strict=True))
    return {**levels, "fragmentation": plan.fragmentation_bytes, "runtime": plan.runtime.total_bytes}
