"""`plan check` on this repository's own example: its baseline holds, and what a pull request breaks is caught and located."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from regressions import ROOT, plan

pytestmark = pytest.mark.traced

EXAMPLE = ROOT / "examples" / "lora"
CALL = "    outputs = model(**batch)\n    loss = outputs.loss\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the example to change."""
    folder = tmp_path / "lora"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def change(folder: Path, *pairs: tuple[str, str]) -> None:
    """Replace parts of the script that are there once."""
    path = folder / "train.py"
    text = path.read_text()
    for old, new in pairs:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text)


def line_of(folder: Path, part: str) -> int:
    """The line of the script that holds a part."""
    return next(i for i, line in enumerate((folder / "train.py").read_text().splitlines(), 1) if part in line)


def regressed(folder: Path) -> dict[str, Any]:
    """The case `step` of a project that must fail."""
    done = plan(folder, "check", "step", "--json")
    assert done.returncode == 1, done.stderr
    (case,) = json.loads(done.stdout)["cases"]
    assert case["status"] == "regression"
    return dict(case)


def test_our_own_baseline_holds(project: Path) -> None:
    """What continuous integration runs: every case of the example against its committed baseline, to the byte."""
    done = plan(project, "check", "--json")

    assert (0, "") == (done.returncode, done.stderr)
    document = json.loads(done.stdout)
    assert ["step", "step-cpu", "planned"] == [case["name"] for case in document["cases"]]
    assert {0} == {change["difference_bytes"] for case in document["cases"] for change in case["changes"]}


def test_an_update_gives_the_same_file(project: Path) -> None:
    """Recording the same code again changes no byte of the baseline."""
    before = (project / "tuneplan-baseline.toml").read_bytes()

    assert 0 == plan(project, "check", "step", "--update").returncode
    assert before == (project / "tuneplan-baseline.toml").read_bytes()


def test_a_refactoring_without_effect_passes(project: Path) -> None:
    """New names, new functions and moved lines change no byte."""
    change(
        project,
        (CALL, "    outputs = run(model, batch)\n    loss = outputs.loss\n"),
        ("def training_step(", "def run(network, inputs):\n    # a helper\n    return network(**inputs)\n\n\ndef training_step("),
        ("import torch\nfrom peft", "import os  # noqa\n\nimport torch\nfrom peft"),
    )
    done = plan(project, "check", "step", "--json")

    assert 0 == done.returncode
    assert {0} == {c["difference_bytes"] for c in json.loads(done.stdout)["cases"][0]["changes"]}


def test_an_extra_fp32_copy_of_activations(project: Path) -> None:
    """Hooks that keep each layer's output in fp32: found at the line of the cast, with exactly its bytes."""
    hook = "layer.register_forward_hook(lambda module, inputs, output: kept.append(output.float()))"
    change(
        project,
        (
            CALL,
            f"    kept = []\n    handles = [\n        {hook}\n        for layer in model.base_model.model.model.layers\n    ]\n"
            f"{CALL}    for handle in handles:\n        handle.remove()\n",
        ),
    )
    case = regressed(project)
    new = case["new_bytes"][0]

    assert ("activations", "_to_copy.default", "base_model.model.model.layers.*", "new") == (
        new["component"],
        new["op"],
        new["module"],
        new["how"],
    )
    assert f"train.py:{line_of(project, 'output.float()')}" == new["line"]
    assert 4 * (4 * 256 * 128) * 4 == new["extra_bytes"] == case["changes"][0]["difference_bytes"]


def test_logits_kept_alive_across_steps(project: Path) -> None:
    """A list that remembers logits: found at the head, from the line that calls the model, and named for what it is."""
    change(
        project,
        (CALL, f"{CALL}    history.append(outputs.logits.detach())\n"),
        ("BATCH_SIZE, LENGTH = 4, 256", "BATCH_SIZE, LENGTH = 4, 256\nhistory = []"),
    )
    case = regressed(project)
    new = case["new_bytes"][0]
    logits = 4 * 256 * 2048 * 2

    assert ("logits", "base_model.model.lm_head", "2 of 3 kept from an earlier step") == (
        new["component"],
        new["module"],
        new["how"],
    )
    assert f"train.py:{line_of(project, 'outputs = model(')}" == new["caller"]
    assert 2 * logits == new["extra_bytes"]
    assert f"every step leaves {logits:,} bytes behind" in case["causes"][0]


def test_checkpointing_switched_off(project: Path) -> None:
    """The cause is named, the layers' modules hold the new bytes, and the annotation is at the line that calls the model."""
    line = '    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})\n'
    change(project, (line, ""))
    page = project / "page.md"
    done = plan(
        project,
        *("check", "step", "--json", "--junit", "junit.xml"),
        GITHUB_ACTIONS="true",
        GITHUB_STEP_SUMMARY=str(page),
        GITHUB_WORKSPACE=str(project.parent),
    )
    (case,) = json.loads(done.stdout)["cases"]

    assert 1 == done.returncode
    assert ["gradient checkpointing changed: on -> off"] == case["causes"]
    assert all(".layers.*" in new["module"] for new in case["new_bytes"][:5])
    assert f"::error file=lora/train.py,line={line_of(project, 'outputs = model(')}," in done.stderr
    assert "**regression**" in page.read_text()
    assert "<failure" in (project / "junit.xml").read_text()
