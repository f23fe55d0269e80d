"""The pytest plugin, in pytest runs of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from regressions import ENVIRONMENT, run

from tuneplan.profiling.regression.remembered import read

TESTS = """
import pytest
import torch

def work(rows):
    made = torch.empty(rows, 256)
    return made + 1

def test_fixture(track_memory):
    with track_memory() as m:
        work(1024)
    assert m.peak_bytes == 2 * 2**20

@pytest.mark.memory_budget("1MiB")
def test_over():
    work(1024)

@pytest.mark.memory_budget("2MiB")
def test_within():
    work(1024)

@pytest.mark.memory_budget
@pytest.mark.parametrize("rows", [10, 20])
def test_remembered(rows, track_memory):
    with track_memory() as m:
        work(rows)

@pytest.mark.memory_budget(most=3)
def test_wrong_word():
    pass

@pytest.mark.memory_budget(5)
def test_that_tracks_nothing(track_memory):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with tests."""
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers -W error -p no:cacheprovider\n")
    (tmp_path / "test_it.py").write_text(TESTS)
    return tmp_path


def pytest_run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Pytest with the plugin, as an environment that has tuneplan installed runs it."""
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "tuneplan.profiling.pytest_plugin", *arguments]
    return run(folder, command, {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})


def test_budgets(folder: Path) -> None:
    """Within passes, over fails with op and line, and each misuse is said in a line."""
    out = pytest_run(folder, "-k", "not remembered").stdout

    assert "2 passed, 3 failed" in out or "3 failed, 2 passed" in out
    assert "memory budget: 2,097,152 bytes (2.0 MiB) at the peak, 1,048,576 allowed, 1,048,576 too many" in out
    assert "1,048,576 activations: add.Tensor in no module at test_it.py:7" in out
    assert "memory_budget: unknown key most; known are limit, max_increase, max_increase_percent" in out
    assert "test_that_tracks_nothing has a memory_budget and tracked nothing" in out


@pytest.mark.parametrize("workers", [(), ("-p", "xdist", "-n", "2")])
def test_baseline_by_test_id(folder: Path, workers: tuple[str, ...]) -> None:
    """Recorded under the test's id, in one process or in several; growth fails, and the same passes."""
    pytest.importorskip("xdist")
    chosen = ("-k", "remembered", *workers)
    assert "is not in tuneplan-tests.toml; run pytest --memory-update" in pytest_run(folder, *chosen).stdout

    assert 0 == pytest_run(folder, *chosen, "--memory-update").returncode
    sizes = {f"test_it.py::test_remembered[{rows}]": 2 * rows * 1024 for rows in (10, 20)}
    assert sizes == dict(read(folder / "tuneplan-tests.toml").tests)
    assert 0 == pytest_run(folder, *chosen).returncode

    (folder / "test_it.py").write_text(TESTS.replace("return made + 1", "return (made + 1, made + 2)"))
    out = pytest_run(folder, *chosen).stdout
    assert "30,720 bytes (30720 B) at the peak, 20,480 allowed" in out or "30,720 bytes" in out
    assert "2 failed" in out


def test_a_broken_baseline(folder: Path) -> None:
    """A merge conflict is one line, not a traceback."""
    (folder / "tuneplan-tests.toml").write_text("[tests]\n<<<<<<< HEAD\n")
    out = pytest_run(folder, "-k", "remembered").stdout

    assert "tuneplan-tests.toml:2 is in the middle of a merge conflict" in out
    assert "Traceback" not in out


def test_quiet_without_torch(folder: Path) -> None:
    """Where torch is missing, tests with the fixture are skipped, marked ones run, and nothing is said."""
    (folder / "conftest.py").write_text(
        "import tuneplan.profiling.pytest_plugin as plugin\nplugin.find_spec = lambda name: None\n"
    )
    text = TESTS.replace("import torch\n", "").replace("torch.empty(rows, 256)", "rows")
    (folder / "test_it.py").write_text(text)
    done = pytest_run(folder)

    assert (0, "") == (done.returncode, done.stderr)
    assert "3 passed, 4 skipped" in done.stdout
    assert "warning" not in done.stdout


def test_loading_imports_nothing_heavy() -> None:
    """The plugin is part of every pytest run; it brings neither torch nor pydantic, rich, click or numpy."""
    heavy = ("torch", "pydantic", "rich", "click", "numpy", "transformers", "tuneplan.planner")
    code = f"import sys, tuneplan.profiling.pytest_plugin; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=60)

    assert "[]" == done.stdout.strip()
