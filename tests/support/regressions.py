"""What the tests of `plan check` share: cases in a folder, readings made by hand, the command line in a folder."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneplan.profiling.regression.cases import Cases, load
from tuneplan.profiling.regression.reading import Place, Reading

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200"}


def place(size_bytes: int, category: str = "activations", **changes: Any) -> Place:
    """A place of an activation in a model of one's own."""
    given: dict[str, Any] = {
        "module": "layers.*.mlp",
        "op": "mm.default",
        "function": "net.py:forward",
        "line": "net.py:10",
        "caller": "net.py:10",
        "count": 1,
    }
    return Place(category=category, size_bytes=size_bytes, **{**given, **changes})


def reading(*places: Place, **changes: Any) -> Reading:
    """A step whose peak is where all these places are alive."""
    levels: dict[str, int] = {}
    by_category: dict[str, tuple[Place, ...]] = {}
    for one in places:
        levels[one.category] = levels.get(one.category, 0) + one.size_bytes
        by_category[one.category] = (*by_category.get(one.category, ()), one)
    given: dict[str, Any] = {
        "peak_bytes": sum(levels.values()),
        "phase": "backward",
        "op": "mm.default",
        "at_peak": levels,
        "highest": levels,
        "phases": {"backward": sum(levels.values())},
        "places": by_category,
        "peak_places": places,
    }
    return Reading(**{**given, **changes})


def cases(folder: Path, text: str, name: str = "tuneplan.toml") -> Cases:
    """The cases of a text."""
    (folder / name).write_text(text, encoding="utf-8")
    return load(folder / name)


def plan(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The command line in a folder, as a job runs it."""
    command = [sys.executable, "-m", "tuneplan.planner.cli.main", *arguments]
    return run(folder, command, environment)


def run(folder: Path, command: list[str], environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """A command in a folder."""
    inherited = {k: v for k, v in ENVIRONMENT.items() if not k.startswith("GITHUB_")}
    return subprocess.run(
        command, cwd=folder, env={**inherited, **environment}, capture_output=True, text=True, timeout=600, check=False
    )
