"""The committed file that remembers what every case needed: TOML, sorted, one value a line, written whole or not at all."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tuneplan.planner.errors import InputError
from tuneplan.profiling.files import write_atomic
from tuneplan.profiling.regression.cases import complaint, read_table
from tuneplan.profiling.regression.reading import Place, Reading

SCHEMA_VERSION = 1
UPDATE = "run plan check --update and commit the file"
_HEADER = """\
# Memory of the cases of {cases}, in bytes. Written by `plan check --update`; do not edit by hand.
# at_peak: by component at the step's peak. highest: the most that a component holds at any moment of the step.
# places: who holds a component's highest: module | op | file:function.
"""
Bytes = Annotated[int, Field(ge=0, strict=True)]
Value = str | int | float | bool | list[str | int]


class Recorded(BaseModel):
    """What one case needed when it was recorded; the words are those of `Reading`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    peak_bytes: Bytes
    phase: str
    op: str
    kept_per_step_bytes: Annotated[int, Field(strict=True)]
    settings: dict[str, Value] = {}
    facts: dict[str, bool | int | str] = {}
    at_peak: dict[str, Bytes]
    highest: dict[str, Bytes]
    phases: dict[str, Bytes]
    places: dict[str, dict[str, Bytes]] = {}

    @classmethod
    def of(cls, reading: Reading, settings: Mapping[str, Any]) -> "Recorded":
        """From a reading."""
        places: dict[str, dict[str, int]] = {}
        for category, found in reading.places.items():
            places[category] = totals(found)
        return cls(
            peak_bytes=reading.peak_bytes,
            phase=reading.phase,
            op=reading.op,
            kept_per_step_bytes=reading.kept_per_step_bytes,
            settings=dict(settings),
            facts=dict(reading.facts),
            at_peak=_nonzero(reading.at_peak),
            highest=_nonzero(reading.highest),
            phases=dict(reading.phases),
            places=places,
        )

    def check(self, name: str, path: Path) -> None:
        """Raise InputError where sums do not agree, which no update writes."""
        pairs = [("at_peak", sum(self.at_peak.values()), self.peak_bytes)]
        pairs += [(f"places.{c}", sum(p.values()), self.highest.get(c, 0)) for c, p in self.places.items()]
        for what, total, stated in pairs:
            if total != stated:
                raise InputError(
                    f"{path}: cases.{name}.{what} sums to {total}, but the total says {stated}; the file was edited by hand or "
                    f"merged badly: restore it from version control, or {UPDATE}"
                )


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int
    versions: dict[str, str]
    cases: dict[str, Recorded] = {}


@dataclass(frozen=True, slots=True)
class Baseline:
    """The file's contents.

    Attributes:
        versions: of what allocates, by package, when it was recorded.
        cases: by name.
    """

    versions: Mapping[str, str]
    cases: Mapping[str, Recorded] = field(default_factory=dict)


def totals(places: Iterable[Place]) -> dict[str, int]:
    """Bytes by the key of the place."""
    found: dict[str, int] = {}
    for place in places:
        found[place.key] = found.get(place.key, 0) + place.size_bytes
    return found


def read(path: Path) -> Baseline:
    """The baseline in a file. Raises InputError: missing, broken, in a merge conflict, or of another version of the format."""
    if not path.exists():
        raise InputError(f"there is no baseline {path} yet; {UPDATE}")
    table = read_table(path)
    stated = table.get("schema_version")
    if stated != SCHEMA_VERSION:
        raise InputError(f"{path} has schema_version {stated!r}, and this tuneplan reads {SCHEMA_VERSION}; {UPDATE}")
    try:
        content = _Content.model_validate(table)
    except ValidationError as error:
        raise InputError(f"{path}: {complaint(error)}; restore it from version control, or {UPDATE}") from error
    for name, recorded in content.cases.items():
        recorded.check(name, path)
    return Baseline(content.versions, content.cases)


def write(path: Path, baseline: Baseline, cases: str) -> bool:
    """Write the file whole; gives whether it changed. Raises InputError where it cannot be written."""
    text = render(baseline, cases)
    if path.exists() and path.read_bytes() == text.encode():
        return False
    write_atomic(path, text.encode())
    return True


def render(baseline: Baseline, cases: str) -> str:
    """The file's text; `cases` is the name of the file of cases."""
    lines = [_HEADER.format(cases=cases), f"schema_version = {SCHEMA_VERSION}", "", "[versions]"]
    lines += [f"{_key(k)} = {_value(v)}" for k, v in sorted(baseline.versions.items())]
    for name, recorded in sorted(baseline.cases.items()):
        prefix = f"cases.{_key(name)}"
        content = recorded.model_dump()
        lines += ["", f"[{prefix}]"]
        lines += [f"{k} = {_value(v)}" for k, v in content.items() if not isinstance(v, dict)]
        for table in ("settings", "facts", "at_peak", "highest", "phases"):
            if content[table]:
                lines += ["", f"[{prefix}.{table}]", *_rows(content[table])]
        for category, found in sorted(content["places"].items()):
            lines += ["", f"[{prefix}.places.{_key(category)}]", *_rows(found)]
    return "\n".join(lines) + "\n"


def _rows(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(k)} = {_value(v)}" for k, v in sorted(table.items())]


def _key(text: str) -> str:
    bare = text and all(c.isascii() and (c.isalnum() or c in "_-") for c in text)
    return text if bare else _value(text)


def _value(value: object) -> str:
    """As TOML; its strings, numbers, booleans and lists of these are written as JSON's, but for DEL."""
    return json.dumps(value, ensure_ascii=True).replace("\x7f", "\\u007f")


def _nonzero(levels: Mapping[str, int]) -> dict[str, int]:
    return {name: size for name, size in levels.items() if size}
