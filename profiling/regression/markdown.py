"""The results as Markdown, for the page of a job or a comment on a pull request."""

from tuneplan.profiling.regression.check import Checked
from tuneplan.profiling.regression.compare import Result
from tuneplan.profiling.regression.report import MOST_PLACES, moved, sentence

_WORD = {"ok": "ok", "regression": "**regression**", "error": "**not checked**", "recorded": "recorded"}


def markdown(checked: Checked) -> str:
    """A table of the cases, then for each that regressed what moved, who holds it and why."""
    lines = ["## Memory of the training step", "", "| case | result | |", "|---|---|---|"]
    lines += [f"| {_cell(r.case.name)} | {_WORD[r.status]} | {_cell(sentence(r))} |" for r in checked.results]
    for result in checked.results:
        if result.status == "regression":
            lines += _regression(result)
    versions = ", ".join(f"{name} {version}" for name, version in checked.versions.items())
    return "\n".join([*lines, "", f"Bytes, counted by `plan check` with {versions}.", ""])


def _regression(result: Result) -> list[str]:
    lines = ["", f"### {_cell(result.case.name)}", ""]
    lines += [f"> {_cell(cause)}" for cause in result.causes]
    lines += ["", "| bytes | baseline | now | change | limit |", "|---|---:|---:|---:|---:|"]
    for change in result.changes:
        if change.difference_bytes:
            name = change.name.replace("_", " ")
            limit = f"{change.allowed:,}" if change.allowed is not None else "none"
            name = f"**{name}**" if change.exceeded else name
            lines.append(f"| {name} | {change.before:,} | {change.now:,} | {moved(change)} | {limit} |")
    lines += ["", "| new bytes | component | op | module | line | called from | |", "|---:|---|---|---|---|---|---|"]
    for new in result.new_bytes[:MOST_PLACES]:
        place = new.place
        cells = (f"+{new.extra_bytes:,}", place.category, place.op, place.module, place.line, place.caller, new.how)
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return lines


def _cell(text: str) -> str:
    """Text that neither ends a cell nor starts markup."""
    plain = " ".join(text.split())
    return "".join(f"\\{c}" if c in r"\|*_<>`[]" else c for c in plain)
