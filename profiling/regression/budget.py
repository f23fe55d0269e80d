"""What a `memory_budget` marker allows, and what is said of a test that needs more."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tuneplan.planner.errors import InputError
from tuneplan.planner.units import format_gib
from tuneplan.profiling.regression import remembered
from tuneplan.profiling.regression.block import Memory
from tuneplan.profiling.regression.cases import NO_GROWTH, Limits, complaint
from tuneplan.profiling.regression.remembered import UPDATE, Remembered
from tuneplan.profiling.regression.versions import installed

MOST_PLACES = 5


def budget(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Limits:
    """The limits of a marker's arguments; no growth at all where it has none. Raises InputError."""
    if len(args) > 1 or (args and "limit" in kwargs):
        raise InputError(f"memory_budget takes one limit, not {len(args) + ('limit' in kwargs)}; write memory_budget('64MiB')")
    given = dict(kwargs)
    limit = args[0] if args else given.pop("limit", None)
    if limit is not None:
        given["max_bytes"] = limit
    try:
        limits = Limits.model_validate(given)
    except ValidationError as error:
        known = ("limit", "max_increase", "max_increase_percent")
        raise InputError(f"memory_budget: {complaint(error, known)}") from error
    return limits if limits.model_dump(exclude_none=True) else NO_GROWTH


def excess(limits: Limits, memory: Memory, test: str, path: Path, update: bool) -> str:
    """Why a test fails; "" where it is within its budget.

    Args:
        limits: of its marker.
        memory: what it needed.
        test: its id.
        path: of the baseline.
        update: the baseline is being recorded, so growth is no failure.

    Raises:
        InputError: the baseline is broken, or does not know the test.
    """
    before, versions = None, ""
    if limits.against_baseline and not update:
        known = remembered.read(path)
        before = known.tests.get(test)
        if before is None:
            raise InputError(f"{test} is not in {path.name}; {UPDATE}")
        now = installed()
        moved = [f"{k} {known.versions.get(k, 'none')} -> {v}" for k, v in now.items() if known.versions.get(k) != v]
        versions = f"\nversions changed since the baseline: {', '.join(moved)}" if moved else ""
    allowed = limits.allowed(before)
    if allowed is None or memory.peak_bytes <= allowed:
        return ""
    peak = memory.peak_bytes
    lines = [f"memory budget: {peak:,} bytes ({format_gib(peak)}) at the peak, {allowed:,} allowed, {peak - allowed:,} too many"]
    if before is not None:
        lines.append(f"baseline {before:,} bytes in {path.name}; if the growth is meant, {UPDATE}")
    for place in memory.places[:MOST_PLACES]:
        called = f" from {place.caller}" if place.caller not in ("", place.line) else ""
        where = f"{place.op} in {place.module or 'no module'} at {place.line or '(made before)'}{called}"
        lines.append(f"  {place.size_bytes:>14,} {place.category.replace('_', ' ')}: {where}")
    return "\n".join(lines) + versions


def record(path: Path, seen: Mapping[str, int], root: Path) -> None:
    """Write the baseline: what was seen, and what it knew of tests that did not run and whose file is there."""
    known = remembered.read(path).tests
    kept = {test: size for test, size in known.items() if (root / test.split("::")[0]).exists()}
    remembered.write(path, Remembered(installed(), {**kept, **seen}))
