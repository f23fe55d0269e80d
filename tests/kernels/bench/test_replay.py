"""Rounds under pytest-benchmark: what it reports is what was measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("pytest_benchmark")

from tuneplan.kernels.bench.replay import TICK, VirtualClock

ROOT = Path(__file__).parents[3]
ROUNDS = [0.25, 0.5, 0.125]
FILE = f"""
import pytest
from tuneplan.kernels.bench import replay
from tuneplan.kernels.bench.cases import cpu_cases

CASE = cpu_cases()[0]
ROW = {{key: None for key in (*replay._KEPT, *replay._CONTEXT)}}
ROW |= {{"state": "measured", "device_seconds": None, "call_seconds": {{"rounds": {ROUNDS}}}, "share_of_copy": 0.5}}
replay.rows = lambda case: {{"tuneplan": ROW, "torchao": {{"state": "not run", "reason": "it is not installed"}}}}

@pytest.mark.benchmark(timer=replay.CLOCK, disable_gc=True)
def test_replayed(benchmark):
    assert replay.replay(benchmark, CASE, "tuneplan") is None
    assert replay.replay(benchmark, CASE, "torchao") == "not run: it is not installed"
"""


def test_a_reading_ends_probes() -> None:
    """The clock moves by a nanosecond at each reading, and by what it is told."""
    clock = VirtualClock()
    first = clock()
    clock.advance(2.0)
    assert 2.0 + TICK == pytest.approx(clock() - first)


def test_statistics_are_of_the_rounds(tmp_path: Path) -> None:
    """The JSON of pytest-benchmark holds the measured seconds, and what the harness knows of them."""
    (tmp_path / "test_played.py").write_text(FILE, encoding="utf-8")
    out = tmp_path / "out.json"
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-c", "/dev/null"]
    command = [sys.executable, *words, str(tmp_path / "test_played.py"), "--benchmark-only", f"--benchmark-json={out}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=_environment(), check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    (found,) = json.loads(out.read_text(encoding="utf-8"))["benchmarks"]
    assert sorted(ROUNDS) == pytest.approx(sorted(found["stats"]["data"]), abs=10 * TICK)
    assert 0.5 == found["extra_info"]["share_of_copy"]


def _environment() -> dict[str, str]:
    """That of this process, less what tells a worker of pytest-xdist that it is one: there benchmarks are off."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return {**own, "PYTHONPATH": str(ROOT / "src")}
