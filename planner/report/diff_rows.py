"""The rows of a comparison of two configurations, the same for the terminal and for Markdown."""

from collections.abc import Callable
from dataclasses import dataclass

from tuneplan.planner.diff import Diff
from tuneplan.planner.units import format_count, format_gib, format_seconds

UNCHANGED = "="
LONGEST_VALUE = 120


@dataclass(frozen=True, slots=True)
class Row:
    """One line: a name, both figures and the change, as text."""

    name: str
    old: str
    new: str
    change: str


def figures(found: Diff) -> list[Row]:
    """Peak, components, checkpoint, time and cost."""
    before, after = found.old.estimate, found.new.estimate
    rows = [_bytes("peak on each GPU", before.device_bytes, after.device_bytes)]
    rows += [_bytes(f"  {name.replace('_', ' ')}", old, new) for name, old, new in found.components if old or new]
    rows.append(_bytes("checkpoint", before.checkpoint_bytes, after.checkpoint_bytes))
    rows.append(_row("trained parameters", before.network.trainable_parameters, after.network.trainable_parameters, format_count))
    if found.old.step_seconds is not None and found.new.step_seconds is not None:
        rows.append(_row("time of an update", found.old.step_seconds, found.new.step_seconds, format_seconds))
    if found.old.tokens_per_second and found.new.tokens_per_second:
        rows.append(_row("tokens/s", found.old.tokens_per_second, found.new.tokens_per_second, lambda rate: f"{rate:,.0f}"))
    if found.old.usd_per_million_tokens is not None and found.new.usd_per_million_tokens is not None:
        old, new = found.old.usd_per_million_tokens, found.new.usd_per_million_tokens
        rows.append(Row("cost of 1M tokens", f"${old:.4f}", f"${new:.4f}", _percent(float(old), float(new))))
    return rows


def phases(found: Diff) -> list[Row]:
    """Allocated peaks by phase."""
    return [_bytes(name.replace("_", " "), old, new) for name, old, new in found.phases]


def settings(found: Diff) -> list[Row]:
    """Options that differ."""
    return [Row(name, _value(old), _value(new), "") for name, old, new in found.settings]


def verdict(found: Diff) -> str:
    """One sentence."""
    before, after = found.old.estimate.device_bytes, found.new.estimate.device_bytes
    if before == after:
        return f"Peak memory stays at {format_gib(after)} on each GPU."
    word = "rises" if after > before else "falls"
    change = _percent(before, after)
    return f"Peak memory {word} from {format_gib(before)} to {format_gib(after)} on each GPU ({change})."


def _value(value: object) -> str:
    text = "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def _bytes(name: str, old: int, new: int) -> Row:
    return _row(name, old, new, lambda size: format_gib(int(size)))


def _row(name: str, old: float, new: float, shown: Callable[[float], str]) -> Row:
    if old == new:
        return Row(name, shown(old), shown(new), UNCHANGED)
    sign = "+" if new > old else "-"
    return Row(name, shown(old), shown(new), f"{sign}{shown(abs(new - old))}, {_percent(old, new)}")


def _percent(old: float, new: float) -> str:
    if old == new:
        return UNCHANGED
    return "new" if not old else f"{100 * (new / old - 1):+.1f} %"
