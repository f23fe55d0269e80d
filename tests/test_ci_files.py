"""The files for the CI of others: the action, the pre-commit hook and the workflow of the docs, run in a scratch repository."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
pytest.importorskip("torch")

from regressions import ROOT, run  # noqa: E402

SCRIPT = """
import torch

def build():
    model = torch.nn.Linear(64, 64)
    return {"model": model, "batch": torch.ones(8, 64), "optimizer": torch.optim.AdamW(model.parameters()), "step": step}

def step(model, batch, optimizer):
    out = model(batch)
    out.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
"""
CASES = '[cases.step]\nentry_point = "train.py:build"\n\n[cases.again]\nentry_point = "train.py:build"\n'


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with a training step in a folder, `plan` on the path, and a baseline."""
    folder = tmp_path / "repository"
    (folder / "training").mkdir(parents=True)
    (folder / "training" / "train.py").write_text(SCRIPT)
    (folder / "training" / "tuneplan.toml").write_text(CASES)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "plan").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tuneplan.planner.cli.main "$@"\n')
    (tools / "plan").chmod(0o755)
    subprocess.run(["git", "init", "-q", str(folder)], check=True, timeout=60)
    assert 0 == shell(folder / "training", "plan check --update", {}).returncode
    return folder


def shell(folder: Path, script: str, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """A script as GitHub's `shell: bash` runs it, with `plan` on the path."""
    tools = next(parent / "bin" for parent in folder.parents if (parent / "bin" / "plan").exists())
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return run(folder, command, {"PATH": path, **environment})


def content(name: str) -> Any:
    """A YAML file of this repository."""
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def inputs(action: Any, **given: str) -> dict[str, str]:
    """The environment of the action's check, from its inputs."""
    values = {name: given.get(name, str(entry["default"])) for name, entry in action["inputs"].items()}
    step = action["runs"]["steps"][-1]
    return {key: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: values[m[1]], text) for key, text in step["env"].items()}


def test_the_action(repository: Path, tmp_path: Path) -> None:
    """Its check passes on the recorded step, and fails on a step that keeps a copy, with the job's page and an annotation."""
    action = content("action.yml")
    step = action["runs"]["steps"][-1]
    page = tmp_path / "page.md"
    github = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(page), "GITHUB_WORKSPACE": str(repository)}
    folder = repository / "training"

    fine = shell(folder, step["run"], {**inputs(action), **github})
    assert (0, "") == (fine.returncode, fine.stderr)
    assert "2 of 2 cases within their limits" in fine.stdout

    (folder / "train.py").write_text(SCRIPT.replace("out = model(batch)", "out = model(batch)\n    copy = out.double()"))
    worse = shell(folder, step["run"], {**inputs(action, cases="step", junit="junit.xml"), **github})
    assert 1 == worse.returncode
    assert "::error file=training/train.py,line=10,title=Memory of step" in worse.stderr
    assert "\\_to\\_copy.default" in page.read_text()
    assert 'tests="1" failures="1"' in (folder / "junit.xml").read_text()


def test_every_input_of_the_action_is_used() -> None:
    """An input that nothing reads, or a use of one that is not there, is found here."""
    text = (ROOT / "action.yml").read_text(encoding="utf-8")

    assert set(content("action.yml")["inputs"]) == set(re.findall(r"inputs\.([\w-]+)", text))
    assert "${{" not in content("action.yml")["runs"]["steps"][-1]["run"]


def test_the_hook(repository: Path) -> None:
    """The hook's entry is a command that runs in a repository without arguments, and for files that exist."""
    (hook,) = content(".pre-commit-hooks.yaml")

    assert hook["pass_filenames"] is False
    assert 0 == shell(repository / "training", hook["entry"], {}).returncode


def test_the_workflow_of_the_docs() -> None:
    """The example workflow is YAML, calls this action, and gives only inputs that it has."""
    text = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    (workflow,) = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(name:.*?)```", text, re.DOTALL)]
    steps = [step for job in workflow["jobs"].values() for step in job["steps"] if "tuneplan" in step.get("uses", "")]

    assert steps
    assert all(set(step.get("with", {})) <= set(content("action.yml")["inputs"]) for step in steps)
