"""A search over parts, at a terminal and as JSON."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuneplan.planner.method_search import Candidate, Found
from tuneplan.planner.units import format_count, format_gib, format_seconds

MOST_SHOWN = 25
NOTES = (
    "Each line trains more than any candidate that needs no more memory and time. Peak: live bytes of one training step, counted "
    "from its ops; the allocator's and the driver's share come on top (plan estimate).",
    "What a method reaches on a task is not predicted: a search for quality has to train the candidates.",
)


def render(found: Found) -> RenderableType:
    """The candidates that no other one betters."""
    request, settings = found.request, found.request.settings
    timed = request.gpu is not None
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("method", overflow="fold")
    for title in ("trained", "peak", "step" if timed else "TFLOP", "merges"):
        table.add_column(title, justify="right")
    shown = _spread(found.best)
    for c in shown:
        time = format_seconds(c.seconds) if c.seconds is not None else f"{c.flops / 1e12:.2f}"
        table.add_row(c.method.name, format_count(c.trainable), format_gib(c.peak_bytes), time, "yes" if c.mergeable else "no")
    head = (
        f"{request.spec.id}, {settings.micro_batch_size} x {settings.seq_len} tokens, {request.optimizer.name}, checkpointing "
        f"{settings.gradient_checkpointing}{', ' + request.gpu.name if request.gpu else ''}"
    )
    tried = (
        f"{found.tried} candidates fit the model, {found.over_budget} are over the budget, {len(found.best)} are not bettered."
    )
    parts: list[RenderableType] = [Text(head), Text(f"Space: {found.space.paper}"), Text(tried), Text()]
    parts.append(table if found.best else Text("No candidate is within the budget.", style="bold red"))
    if len(shown) < len(found.best):
        parts.append(Text(f"... {len(found.best) - len(shown)} more between them (--json has all)"))
    parts.append(Text())
    parts += [Text(f"Left out, such as {name}: {reason}") for name, reason in found.misfits]
    if found.space.leaves_out:
        parts.append(Text(f"The paper's search also has {found.space.leaves_out}.", style="dim"))
    return Group(*parts, *[Text(note, style="dim") for note in NOTES])


def _spread(best: tuple[Candidate, ...]) -> list[Candidate]:
    """At most MOST_SHOWN of them, the ends and evenly between."""
    if len(best) <= MOST_SHOWN:
        return list(best)
    return [best[round(i * (len(best) - 1) / (MOST_SHOWN - 1))] for i in range(MOST_SHOWN)]


def search_json(found: Found) -> dict[str, Any]:
    """The same with every candidate that is not bettered."""
    return {
        "request": {key: value for key, value in found.request.to_json().items() if not key.startswith("method")},
        "space": {"paper": found.space.paper, "leaves_out": found.space.leaves_out, "combinations": found.space.size},
        "tried": found.tried,
        "over_budget": found.over_budget,
        "quality": "not predicted",
        "best": [
            {
                "method": c.method.name,
                "trainable_parameters": c.trainable,
                "peak_allocated_bytes": c.peak_bytes,
                "flops": c.flops,
                "step_seconds": c.seconds,
                "mergeable": c.mergeable,
            }
            for c in found.best
        ],
        "left_out": [{"method": name, "reason": reason} for name, reason in found.misfits],
    }
