"""The results of `plan check` for a person at a terminal, and as the JSON document."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuneplan.planner.units import format_gib
from tuneplan.profiling.regression.check import Checked
from tuneplan.profiling.regression.compare import Change, NewBytes, Result

MOST_PLACES = 8
_STYLE = {"ok": "green", "regression": "bold red", "error": "bold red", "recorded": "cyan"}


def sentence(result: Result) -> str:
    """What became of a case, in a line."""
    if result.message:
        return result.message
    peak = result.changes[0]
    if result.status == "ok":
        return f"{format_gib(peak.now)} at the peak, {moved(peak)}"
    names = ", ".join(change.name.replace("_", " ") for change in result.exceeded)
    return f"{format_gib(peak.now)} at the peak, {moved(peak)}; over its limit: {names}"


def moved(change: Change) -> str:
    """By how much a quantity moved."""
    if not change.difference_bytes:
        return "unchanged"
    sign = "+" if change.difference_bytes > 0 else "-"
    percent = f" ({change.percent:+.2f} %)" if change.percent is not None else ""
    return f"{sign}{format_gib(abs(change.difference_bytes))}{percent}"


def place_words(new: NewBytes) -> str:
    """Where the new bytes are, in a line: op, module, line, and the line of the user's that led there."""
    place = new.place
    called = f", called from {place.caller}" if place.caller and place.caller != place.line else ""
    return f"{place.op} in {place.module or 'no module'} at {place.line or 'an unknown line'}{called}"


def check_report(checked: Checked) -> RenderableType:
    """All cases: a line each, a table for those that moved, and who holds the new bytes."""
    parts: list[RenderableType] = []
    for result in checked.results:
        status = Text(f"{result.status:<11}", style=_STYLE[result.status])
        parts.append(Text.assemble(status, (result.case.name, "bold"), f"  {sentence(result)}"))
        if any(change.difference_bytes for change in result.changes):
            parts += [_changes(result), Text()]
        if result.new_bytes:
            parts += [Text("Who holds the new bytes", style="bold"), _places(result), Text()]
        parts += [Text(f"! {cause}", style="yellow") for cause in result.causes]
    parts += [Text(), Text(_outcome(checked), style="bold")]
    return Group(*parts)


def _outcome(checked: Checked) -> str:
    if checked.updated is not None:
        path = checked.cases.baseline.name
        if checked.exit_code:
            return f"{path} was left as it is: a case could not run"
        return f"{path} {'written; commit it' if checked.updated else 'was up to date'}"
    counts = {status: sum(result.status == status for result in checked.results) for status in ("ok", "regression", "error")}
    words = f"{counts['ok']} of {len(checked.results)} cases within their limits"
    if counts["regression"]:
        words += f"; {counts['regression']} regressed (if that is meant: plan check --update, and commit the baseline)"
    return words + (f"; {counts['error']} could not be checked" if counts["error"] else "")


def _table(*columns: tuple[str, bool]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, right in columns:
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    return table


def _changes(result: Result) -> Table:
    table = _table(("bytes", False), ("baseline", True), ("now", True), ("change", True), ("limit", True), ("", False))
    for change in result.changes:
        if change.difference_bytes or change.name == "peak":
            limit = f"{change.allowed:,}" if change.allowed is not None else "none"
            row = (f"{change.before:,}", f"{change.now:,}", moved(change), limit, "over" if change.exceeded else "")
            table.add_row(change.name.replace("_", " "), *row)
    return table


def _places(result: Result) -> Table:
    table = _table(("bytes", True), ("component", False), ("op", False), ("module", False), ("line", False), ("", False))
    for new in result.new_bytes[:MOST_PLACES]:
        place = new.place
        lines = place.line if place.caller in ("", place.line) else f"{place.line} from {place.caller}"
        row = (f"+{new.extra_bytes:,}", place.category.replace("_", " "), place.op, place.module, lines, new.how)
        table.add_row(*row)
    rest = result.new_bytes[MOST_PLACES:]
    if rest:
        table.add_row(f"+{sum(new.extra_bytes for new in rest):,}", f"{len(rest)} more places")
    return table


def to_json(checked: Checked) -> dict[str, Any]:
    """The document: every case with all that moved."""
    return {
        "source": "check",
        "config": str(checked.cases.path),
        "baseline": str(checked.cases.baseline),
        "exit_code": checked.exit_code,
        "updated": checked.updated,
        "versions": dict(checked.versions),
        "recorded_versions": dict(checked.recorded_versions),
        "cases": [_case(result) for result in checked.results],
    }


def _case(result: Result) -> dict[str, Any]:
    return {
        "name": result.case.name,
        "status": result.status,
        "message": result.message or None,
        "settings": result.case.settings(),
        "changes": [
            {
                "name": change.name.replace(" ", "_"),
                "baseline_bytes": change.before,
                "bytes": change.now,
                "difference_bytes": change.difference_bytes,
                "allowed_bytes": change.allowed,
                "exceeded": change.exceeded,
            }
            for change in result.changes
        ],
        "new_bytes": [
            {
                "extra_bytes": new.extra_bytes,
                "component": new.place.category,
                "op": new.place.op,
                "module": new.place.module,
                "line": new.place.line,
                "caller": new.place.caller or None,
                "storages": new.place.count,
                "how": new.how,
            }
            for new in result.new_bytes
        ],
        "causes": list(result.causes),
    }
