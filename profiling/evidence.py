"""The accuracy tables of a campaign's rows, in Markdown: errors by figure, method, model, phase; every row; what is missing.

    python -m tuneplan.profiling.evidence DIR

An error is ours over what was measured, less one: a negative one means that we say too little.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median

from tuneplan.planner.units import GIB
from tuneplan.profiling.campaign import Row, is_done, read_rows
from tuneplan.profiling.cases import Case, gpu_cases
from tuneplan.profiling.failures import OUT_OF_MEMORY
from tuneplan.profiling.step import STEP_PHASES

SOURCES = ("estimated", "traced")
FIGURES = {"allocated": "allocated_bytes", "reserved": "reserved_bytes", "process": "device_bytes"}


def case_of(row: Row) -> Case:
    """The case of a row."""
    return Case(**row["case"])


def is_measured(row: Row) -> bool:
    """Whether a step really ran to its end."""
    seen = row.get("measured", {})
    return "peak" in seen and not seen["failure"]


def error(ours: float | None, theirs: float | None) -> float | None:
    """Ours over theirs, less one, in percent; None where one of them is not known."""
    return None if not ours or not theirs else 100 * (ours / theirs - 1)


def peak_error(row: Row, source: str, figure: str) -> float | None:
    """The error of a source in one of FIGURES; None where it has no figures or nothing was measured."""
    if not is_measured(row) or "peak" not in row.get(source, {}):
        return None
    key = FIGURES[figure]
    return error(row[source]["peak"][key], row["measured"]["peak"][key])


def phase_error(row: Row, source: str, phase: str) -> float | None:
    """The error of a source in the allocated peak of a phase."""
    if not is_measured(row) or "peak" not in row.get(source, {}):
        return None
    pair = [row[name]["phases"].get(phase, {}).get("peak_bytes") for name in (source, "measured")]
    return error(*pair)


def time_error(row: Row) -> float | None:
    """The error of the estimated step time."""
    return error(row["estimated"].get("step_seconds"), row["measured"]["step_seconds"]) if is_measured(row) else None


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[str]:
    """A Markdown table; nothing where it has no lines."""
    found = list(lines)
    if found:
        yield from ("| " + " | ".join(header) + " |", "|" + "---|" * len(header))
        yield from ("| " + " | ".join(line) + " |" for line in found)
        yield ""


def spread(errors: Iterable[float | None]) -> tuple[str, str, str]:
    """How many errors are known, their median size, and the one that is largest in size."""
    known = [e for e in errors if e is not None]
    if not known:
        return "0", "not measured yet", "not measured yet"
    return str(len(known)), f"{median(abs(e) for e in known):.2f} %", f"{max(known, key=abs):+.2f} %"


def by(rows: Sequence[Row], title: str, key: Callable[[Row], str]) -> Iterator[str]:
    """Errors of the allocated peak by group."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if is_measured(row):
            groups.setdefault(key(row), []).append(row)
    header = (title, *(f"{source}: {word}" for source in SOURCES for word in ("cases", "median", "worst")))
    lines = []
    for name, group in sorted(groups.items()):
        cells = [cell for source in SOURCES for cell in spread(peak_error(row, source, "allocated") for row in group)]
        lines.append((name, *cells))
    yield from table(header, lines)


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """All tables, line by line."""
    yield from ("## Against measured steps", "")
    header = ("figure", "source", "cases", "median error", "worst error")
    lines = [(figure, source, *spread(peak_error(r, source, figure) for r in rows)) for figure in FIGURES for source in SOURCES]
    lines.append(("step time", "estimated", *spread(time_error(r) for r in rows if "estimated" in r)))
    yield from table(header, lines)
    lines = [(phase, source, *spread(phase_error(r, source, phase) for r in rows)) for phase in STEP_PHASES for source in SOURCES]
    yield from table(("allocated peak of", "source", "cases", "median error", "worst error"), lines)
    yield from by(rows, "method", lambda row: case_of(row).method.partition("(")[0])
    yield from by(rows, "model", lambda row: case_of(row).model)
    yield from _limits(rows)
    yield from _every(rows)
    yield from missing(rows)


def _limits(rows: Sequence[Row]) -> Iterator[str]:
    yield from ("### The largest batch", "")
    found = [row for row in rows if "predicted" in row.get("largest_batch", {})]
    names = ("predicted", "predicted_with_margin", "measured")
    lines = [(case_of(row).label, *(str(row["largest_batch"][name]) for name in names)) for row in found]
    yield from table(("case", "predicted", "with the safety margin", "measured"), lines)
    wrong = [case_of(row).label for row in rows if promised(row)]
    yield f"Called fitting and ran out of memory: {'; '.join(wrong) or 'none'} (of {len(rows)} rows)."
    yield ""


def promised(row: Row) -> bool:
    """Whether the estimate said that a step fits the card, and it ran out of memory; of a search, whether it found less."""
    if "largest_batch" in row:
        found = row["largest_batch"]
        return bool("predicted" in found and found["predicted_with_margin"] > found["measured"])
    failure = row["measured"].get("failure")
    if not failure or failure["kind"] != OUT_OF_MEMORY or "peak" not in row["estimated"]:
        return False
    return bool(row["estimated"]["peak"]["device_bytes"] <= row["provenance"]["device"].get("memory_bytes", 0))


def _every(rows: Sequence[Row]) -> Iterator[str]:
    yield from ("### Every row", "")
    header = ("case", "measured GiB", "estimated", "traced", "reserved GiB", "estimated", "process GiB", "estimated", "seconds")
    lines = []
    for row in rows:
        if "largest_batch" in row:
            continue
        seen = row["measured"]
        if not is_measured(row):
            why = seen.get("refused") or seen["failure"]["kind"].replace("_", " ")
            lines.append((case_of(row).label, why, *[""] * (len(header) - 2)))
            continue
        peak = seen["peak"]
        cells = [_gib(peak["allocated_bytes"]), *(_percent(peak_error(row, source, "allocated")) for source in SOURCES)]
        for figure in ("reserved", "process"):
            cells += [_gib(peak[FIGURES[figure]]), _percent(peak_error(row, "estimated", figure))]
        lines.append((case_of(row).label, *cells, f"{seen['step_seconds']:.3f}"))
    yield from table(header, lines)


def missing(rows: Sequence[Row]) -> Iterator[str]:
    """What the campaign still has to measure."""
    left = [case.label for case in gpu_cases() if not is_done(case, rows)]
    total = sum(1 for _ in gpu_cases())
    yield from ("### Missing", "", f"{total - len(left)} of {total} cases of the campaign have a row.")
    yield from (f"- {label}: not measured yet" for label in left)


def _gib(size: int | None) -> str:
    return "not known" if size is None else f"{size / GIB:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f} %"


def main(arguments: list[str] | None = None) -> int:
    """Print the tables of a campaign's folder."""
    parser = argparse.ArgumentParser(description="The accuracy tables of a campaign.")
    parser.add_argument("folder", type=Path, help="of rows.jsonl")
    given = parser.parse_args(arguments)
    for line in tables(read_rows(given.folder)):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
