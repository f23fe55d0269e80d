"""Planning starts in a blink: what it must not import, checked in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "matplotlib", "numpy", "pydantic", "peft", "triton", "pandas", "yaml")
REPORT = "; import sys, json; sys.stderr.write(json.dumps(sorted(sys.modules)))"


def modules_after(code: str) -> set[str]:
    """Names of the modules that a fresh interpreter has after a piece of code."""
    result = subprocess.run(
        [sys.executable, "-c", code + REPORT],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    found: list[str] = json.loads(result.stderr)
    return set(found)


def call(*arguments: str) -> str:
    """Code that runs `plan` and checks its exit code."""
    return f"from tuneplan.planner.cli.main import run; assert run({list(arguments)!r}) in (0, 1)"


@pytest.mark.parametrize(
    "code",
    [
        "import tuneplan",
        "import tuneplan.planner.cli.main",
        call("--model", "70b", "--gpu", "a100-80g"),
        call("--model", "70b", "--gpu", "a100-80g", "--json"),
        call("estimate", "--model", "7b", "--gpu", "a100-80g"),
        call("estimate", "--config", str(ROOT / "tests" / "golden" / "configs" / "unsloth_flat.json")),
        call("diff", "7b", "8b"),
        call("explain", "all", "--model", "7b"),
        call("compare", "--model", "7b", "--gpu", "a100-80g", "--methods", "lora,ia3"),
        call("models"),
        call("gpus"),
        call("methods"),
        call("--help"),
        call("serve-memory", "--model", "8b", "--gpu", "a100-80g", "--json"),
    ],
)
def test_planning_imports_nothing_heavy(code: str) -> None:
    """No torch, transformers, matplotlib, numpy or pydantic on the planning path."""
    found = modules_after(code)
    assert [] == [name for name in HEAVY if name in found]


def test_importing_the_package_imports_nothing_of_it() -> None:
    """`import tuneplan` is a name and a version."""
    assert {"tuneplan"} == {name for name in modules_after("import tuneplan") if name.startswith("tuneplan")}


def test_json_needs_no_terminal_library() -> None:
    """Rich is imported for the terminal alone."""
    assert not any(name.startswith("rich") for name in modules_after(call("--model", "7b", "--gpu", "a100-80g", "--json")))


def test_other_commands_are_not_imported() -> None:
    """A command is imported when it is called."""
    found = modules_after(call("methods"))
    assert not any(f"tuneplan.planner.cli.{name}" in found for name in ("compare", "estimate", "explain", "gpus", "models"))
