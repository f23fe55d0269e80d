"""Rows of results: one a case and implementation, a line of JSON each, with everything that is needed to repeat it."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tuneplan.kernels.bench.cases import Case
from tuneplan.kernels.bench.rounds import Ratio, Summary

ROWS = "rows.jsonl"
RESULTS = Path(__file__).parents[1] / "results"
"""A folder for each device, of its name."""
MEASURED, NOT_RUN, WRONG, FAILED = "measured", "not run", "wrong", "failed"
Row = dict[str, Any]
ATTEMPTS = 2


def row(kind: str, key: str, provenance: Mapping[str, Any], **body: Any) -> Row:
    """A row of one kind (`bench`, `ceilings`, `check`, `sweep`, `step`), under a key that is its own within the kind."""
    return {"kind": kind, "key": key, **body, "provenance": dict(provenance)}


def bench_key(case: Case, implementation: str) -> str:
    """Of a row of a case and an implementation."""
    return f"{case.label} / {implementation}"


def seconds_json(summary: Summary | None) -> dict[str, Any] | None:
    """Seconds of a call."""
    return None if summary is None else asdict(summary)


def ratio_json(ratio: Ratio | None) -> dict[str, Any] | None:
    """A ratio with its noise and its verdict."""
    return None if ratio is None else asdict(ratio)


def read_rows(file: Path) -> list[Row]:
    """The rows of a file, or of the `.jsonl` files of a folder; a line that was cut off by a kill is passed over."""
    return list(_rows(sorted(file.glob("*.jsonl")) if file.is_dir() else [file]))


def _rows(files: Iterable[Path]) -> Iterator[Row]:
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        for line in lines:
            with suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict) and {"kind", "key", "provenance"} <= set(found):
                    yield found


def settled(rows: Iterable[Row], kind: str, key: str) -> bool:
    """Whether something need not be tried again: it has a result, or failed as often as it may."""
    states = [one["state"] for one in rows if one["kind"] == kind and one["key"] == key]
    return any(state in (MEASURED, WRONG) for state in states) or states.count(FAILED) >= ATTEMPTS


def newest(rows: Iterable[Row]) -> list[Row]:
    """The last row of each kind and key, in the order in which they first came."""
    found: dict[tuple[str, str], Row] = {}
    for one in rows:
        found[one["kind"], one["key"]] = one
    return list(found.values())


def append(file: Path, rows: Iterable[Row]) -> None:
    """Write rows as they come; a line that was cut off before stays a line of its own."""
    text = "".join(json.dumps(one, allow_nan=False) + "\n" for one in rows)
    with file.open("a+b") as target:
        if target.tell():
            target.seek(-1, 2)
            text = text if target.read(1) == b"\n" else "\n" + text
        target.write(text.encode())
