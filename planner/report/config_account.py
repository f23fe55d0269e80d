"""Configuration files in a terminal report: which they are, what was typed over them, and what became of every key."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

if TYPE_CHECKING:
    from tuneplan.planner.configs.accounting import Entry
    from tuneplan.planner.configs.training_config import ConfigUse


def config_rows(use: "ConfigUse | None") -> list[tuple[str, str]]:
    """Rows of a report's header."""
    if use is None:
        return []
    rows = [("config", "; ".join(f"{name} ({kind})" for name, kind in use.config.formats.items()))]
    if use.config.stack:
        rows.append(("runs under", f"{use.config.stack}; figures mirror the stack of plan estimate"))
    if use.overridden:
        typed = ", ".join(f"--{name.replace('_', '-')} (the files: {value})" for name, value in use.overridden.items())
        rows.append(("typed over it", typed))
    return rows


def config_warnings(use: "ConfigUse | None") -> list[RenderableType]:
    """What the files ask for that is not modelled, assumptions and contradictions."""
    return [] if use is None else [Text(f"! {warning}", style="yellow") for warning in use.config.warnings]


def account(use: "ConfigUse | None") -> list[RenderableType]:
    """Every key of the files in three lists."""
    if use is None:
        return []
    from tuneplan.planner.configs.accounting import IRRELEVANT, NOT_MODELLED, USED

    parts: list[RenderableType] = [Text()]
    described = {USED: "used", IRRELEVANT: "without effect on memory, time and cost", NOT_MODELLED: "not modelled"}
    for status, words in described.items():
        entries = [entry for entry in use.config.entries if entry.status == status]
        if entries:
            parts.append(Text(f"{len(entries)} key{'s' if len(entries) > 1 else ''} {words}: {_listed(entries)}", style="dim"))
    return parts


def _listed(entries: "Iterable[Entry]") -> str:
    """Keys with one note between them put together: `max_steps (updates); seed, report_to (logging)`."""
    groups: dict[str, list[str]] = {}
    for entry in entries:
        groups.setdefault(entry.note, []).append(entry.key)
    return "; ".join(f"{', '.join(keys)} ({note})" for note, keys in groups.items())
