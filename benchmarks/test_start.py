"""How long `plan --model 70b --gpu a100-80g` takes as a process, and how much memory, beside an interpreter that does nothing.

Run with `pytest benchmarks --benchmark-only`. The goal of the design is under 0.35 s and 60 MB on 2 cores. Measured with the
bytecode that pip makes when it installs the package, and without any, as in a checkout where `PYTHONDONTWRITEBYTECODE` is set:
there Python compiles the sources in every run, which takes about a quarter of the time.
"""

import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PLAN = [
    sys.executable,
    "-c",
    "from tuneplan.planner.cli.main import main; main()",
    "--model",
    "70b",
    "--gpu",
    "a100-80g",
]
NOTHING = [sys.executable, "-c", "pass"]
ROUNDS = 15


def environment(bytecode: Path | None) -> dict[str, str]:
    """The environment of a process that keeps bytecode in a folder; None: it keeps none, and finds none in a clean checkout."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    if bytecode is None:
        kept["PYTHONDONTWRITEBYTECODE"] = "1"
    else:
        kept["PYTHONPYCACHEPREFIX"] = str(bytecode)
    return {**kept, "PYTHONPATH": str(ROOT / "src")}


def run(command: list[str], bytecode: Path | None) -> None:
    """One process, its output thrown away."""
    given = environment(bytecode)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=given)


def seconds(command: list[str], bytecode: Path | None) -> float:
    """Wall time of one process."""
    start = time.perf_counter()
    run(command, bytecode)
    return time.perf_counter() - start


def peak_rss_bytes(command: list[str], bytecode: Path | None) -> int:
    """Peak resident memory of a command, in a child of its own so that other children do not count."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    given = environment(bytecode)
    result = subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True, text=True, env=given)
    unit = 1 if sys.platform == "darwin" else 1024
    return int(result.stdout) * unit


@pytest.mark.parametrize("installed", [True, False], ids=["bytecode", "sources"])
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_plan_process(benchmark: Any, tmp_path: Path, as_json: bool, installed: bool) -> None:
    """Whole-process time of the first command of the README, with its ratio to `python -c pass` and its peak memory."""
    command = [*PLAN, *(["--json"] if as_json else [])]
    bytecode = tmp_path if installed else None
    benchmark.pedantic(run, args=(command, bytecode), rounds=ROUNDS, warmup_rounds=2)
    nothing = statistics.median(seconds(NOTHING, bytecode) for _ in range(ROUNDS))
    benchmark.extra_info["python_c_pass_seconds"] = nothing
    benchmark.extra_info["ratio_to_python_c_pass"] = (
        statistics.median(seconds(command, bytecode) for _ in range(ROUNDS)) / nothing
    )
    benchmark.extra_info["peak_rss_bytes"] = peak_rss_bytes(command, bytecode)
    benchmark.extra_info["python_c_pass_peak_rss_bytes"] = peak_rss_bytes(NOTHING, bytecode)
    benchmark.extra_info["all_children_peak_rss"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def test_python_that_does_nothing(benchmark: Any, tmp_path: Path) -> None:
    """The floor: an interpreter that starts and ends."""
    benchmark.pedantic(run, args=(NOTHING, tmp_path), rounds=ROUNDS, warmup_rounds=2)
