"""Entry points that are not what they should be: each gives one clear line, and none leaves a process behind."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from regressions import cases  # noqa: E402

from tuneplan.planner.errors import InputError  # noqa: E402
from tuneplan.profiling.regression import worker  # noqa: E402
from tuneplan.profiling.regression.run import run  # noqa: E402

SCRIPT = """
import os, sys, time
import torch

def fine():
    model = torch.nn.Linear(8, 8)
    def step(model, batch, optimizer):
        model(batch).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"model": model, "batch": torch.ones(2, 8), "optimizer": torch.optim.AdamW(model.parameters()), "step": step}

def raises():
    raise KeyError("no such data set")

def leaves():
    sys.exit(3)

def dies():
    print("out of luck", file=sys.stderr, flush=True)
    os._exit(7)

def never():
    while True:
        time.sleep(1)

def number():
    return 5

def half():
    return {"model": torch.nn.Linear(8, 8)}

def other():
    return {**fine(), "model": "a model"}

def elsewhere():
    with torch.device("cpu"):
        return fine()
"""


@pytest.fixture(autouse=True)
def sdpa() -> Iterator[Any]:
    """Transformers' interface with its own sdpa, before and after what runs here in the process of the tests."""
    transformers = pytest.importorskip("transformers")
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    transformers.AttentionInterface.register("sdpa", sdpa_attention_forward)
    yield transformers.AttentionInterface
    transformers.AttentionInterface.register("sdpa", sdpa_attention_forward)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with one script."""
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("raises", "script.py:raises raised KeyError at script.py:14: 'no such data set'"),
        ("leaves", "script.py:leaves raised SystemExit at script.py:17: 3"),
        ("dies", "script.py:dies ended its process (exit code 7) before its steps were done: out of luck"),
        ("never", "script.py:never was not done after 5 s and was stopped; make the step smaller or raise time_limit_seconds"),
    ],
)
def test_entry_points_that_fail(folder: Path, function: str, message: str) -> None:
    """What the user's code does to itself is said with its line; what never returns is stopped."""
    text = f'[cases.a]\nentry_point = "script.py:{function}"\ntime_limit_seconds = {5 if function == "never" else 300}\n'
    with pytest.raises(InputError) as refusal:
        run(cases(folder, text).cases["a"], folder)
    assert f"case a: {message}" in str(refusal.value)


@pytest.mark.parametrize(
    ("entry_point", "message"),
    [
        ("script.py:number", "gave int; return (model, batch, optimizer)"),
        ("script.py:half", "gave dict; return (model, batch, optimizer)"),
        ("script.py:other", "gave a str as the model"),
        ("script.py:elsewhere", "built its model on cpu, not on meta"),
        ("script.py:fines", "has no function 'fines'; did you mean 'fine'?"),
        ("other.py:fine", "there is no file"),
        ("no_such_module_here:fine", "there is no module 'no_such_module_here'"),
        ("script.py", "names no function"),
        ("script.py:", "names no function"),
    ],
)
def test_entry_points_that_are_none(folder: Path, entry_point: str, message: str) -> None:
    """What is not there, or gives something else, is refused."""
    with pytest.raises(InputError) as refusal:
        worker.run(entry_point, "meta", folder)
    assert message in str(refusal.value)


def test_without_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case for a GPU says that there is none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="torch sees none here"):
        worker.run("script.py:fine", "gpu", folder)
    planned = cases(folder, '[cases.a]\nmodel = "qwen2.5-0.5b"\ndevice = "gpu"\n').cases["a"]
    with pytest.raises(InputError, match="case a: the case is to run on a GPU, and torch sees none here"):
        run(planned, folder)


def test_the_same_code_needs_the_same_bytes(folder: Path) -> None:
    """Twice the same entry point, on meta and on the CPU: the readings are equal in every byte and place."""
    for device in ("meta", "cpu"):
        first, second = (worker.run("script.py:fine", device, folder) for _ in range(2))

        assert first == second
        assert first.peak_bytes > 0
        assert first.kept_per_step_bytes == 0


ATTENTION = """
import sys
import torch
import script

def late():
    made = script.fine()
    def step(model, batch, optimizer):
        sys.modules["transformers"] = sys.there  # imported by the step for the first time
        made["step"](model, batch, optimizer)
    return {**made, "step": step}
"""


def test_transformers_that_comes_with_the_first_step(folder: Path, sdpa: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sdpa allocates as on a card from the second step on; the reading is of the last ones."""
    monkeypatch.syspath_prepend(folder)
    (folder / "attention.py").write_text(ATTENTION)
    own = sdpa()["sdpa"]
    monkeypatch.setattr(sys, "there", sys.modules["transformers"], raising=False)
    with monkeypatch.context() as blocked:
        blocked.setitem(sys.modules, "transformers", None)
        worker.run("script.py:fine", "meta", folder)
        assert sdpa()["sdpa"] is own
        worker.run("attention.py:late", "meta", folder)
    assert sdpa()["sdpa"] is not own


def test_an_sdpa_of_the_project_stays(folder: Path, sdpa: Any) -> None:
    """What the project registers is its own code, also for attention."""

    def mine() -> None:
        return None

    sdpa.register("sdpa", mine)
    worker.run("script.py:fine", "meta", folder)
    assert sdpa()["sdpa"] is mine


def test_transformers_that_is_too_old(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said as that, not as an error of the entry point."""
    monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))
    with pytest.raises(InputError, match="transformers of this version cannot be told what attention allocates on a card"):
        worker.run("script.py:fine", "meta", folder)
