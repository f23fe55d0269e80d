"""The baseline of a test suite: peak bytes by test id, TOML, sorted, one test a line."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tuneplan.planner.errors import InputError
from tuneplan.profiling.files import write_atomic
from tuneplan.profiling.regression.cases import complaint, read_table

UPDATE = "run pytest --memory-update and commit the file"


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    versions: dict[str, str] = {}
    tests: dict[str, Annotated[int, Field(ge=0, strict=True)]] = {}


@dataclass(frozen=True, slots=True)
class Remembered:
    """Peak bytes by test id, and the versions of what allocates when they were recorded."""

    versions: Mapping[str, str] = field(default_factory=dict)
    tests: Mapping[str, int] = field(default_factory=dict)


def read(path: Path) -> Remembered:
    """The file's contents; empty where there is none. Raises InputError for a broken file."""
    if not path.exists():
        return Remembered()
    try:
        content = _Content.model_validate(read_table(path))
    except ValidationError as error:
        raise InputError(f"{path}: {complaint(error)}; restore it from version control, or {UPDATE}") from error
    return Remembered(content.versions, content.tests)


def write(path: Path, remembered: Remembered) -> None:
    """Write the file whole. Raises InputError where it cannot be written."""
    lines = ["# Peak bytes of tests. Written by `pytest --memory-update`; do not edit by hand.", "", "[versions]"]
    lines += [f"{name} = {json.dumps(version)}" for name, version in sorted(remembered.versions.items())]
    lines += ["", "[tests]", *(f"{json.dumps(test)} = {size}" for test, size in sorted(remembered.tests.items()))]
    write_atomic(path, ("\n".join(lines) + "\n").encode())
