"""`plan trace` on the command line."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from refusals import refuse
from traced import small

import tuneplan

pytestmark = pytest.mark.traced


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A folder with a small config.json."""
    (tmp_path / "config.json").write_text(json.dumps(small()), encoding="utf-8")
    return str(tmp_path)


def test_json(plan: Any, config: str) -> None:
    """One document on stdout, as an estimate gives it."""
    outcome = plan("trace", "--model", config, "--method", "lora", "--seq-len", "128", "--json")
    document = outcome.json()

    assert (0, "traced", 1) == (outcome.code, document["source"], document["schema_version"])
    assert document["parameters"]["trainable"] < document["parameters"]["total"]


def test_verify(plan: Any, config: str) -> None:
    """The gap to the estimate is below 0.1 %, and the document says so."""
    document = plan("trace", "--model", config, "--method", "qlora", "--seq-len", "256", "--verify", "--json").json()
    allocated = document["verification"]["allocated"]

    assert abs(allocated["percent"]) < 0.1
    assert allocated["estimated_bytes"] - allocated["traced_bytes"] == allocated["difference_bytes"]
    assert {"forward", "backward", "optimizer_step"} == {row["name"] for row in document["verification"]["phases"]}


def test_text(plan: Any, config: str) -> None:
    """A person sees peak, phases, who holds what, and the gap."""
    out = plan("trace", "--model", config, "--method", "full", "--seq-len", "128", "--verify").out

    for part in ("Peak ", "optimizer step", "Largest at the peak", "against traced", "foreach_sqrt"):
        assert part in out


def test_a_card_that_is_too_small(plan: Any, config: str) -> None:
    """What does not fit is an honest no."""
    assert 1 == plan("trace", "--model", config, "--method", "full", "--gpu-memory", "1GiB", "--seq-len", "4096").code


def test_files(plan: Any, config: str, tmp_path: Path) -> None:
    """A picture and a snapshot are written, and stderr says where."""
    for name in ("step.png", "step.svg", "step.pickle"):
        outcome = plan("trace", "--model", config, "--seq-len", "64", "--timeline", str(tmp_path / name), "--json")
        assert (tmp_path / name).stat().st_size > 1000
        assert name in outcome.err
        assert outcome.json()["source"] == "traced"


def test_an_adapter_config(plan: Any, config: str, tmp_path: Path) -> None:
    """Any tuner of PEFT, on a quantized base too."""
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "OFT", "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}), encoding="utf-8")
    document = plan("trace", "--model", config, "--peft-config", str(path), "--seq-len", "64", "--json").json()

    assert "OFT" in document["request"]["method"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peft-config", "/no/such/file"], "does not exist"),
        (["--timeline", "step.gif"], "neither .png, .svg nor .pickle"),
        (["--timeline", "/no/such/folder/step.png"], "does not exist"),
        (["--snapshot", "/no/such/file"], "cannot be read"),
        (["--task", "poetry"], "Unknown task 'poetry'"),
        (["--data-parallel", "2"], "one GPU's step"),
        (["--verify", "--task", "masked-lm"], "does not know llama models for the task masked-lm"),
        (["--batch-lengths", "12,abc"], "not a list of lengths"),
        (["--batch-lengths", "1"], "no length to train on"),
        (["--batch-lengths", ",".join(["9"] * 65)], "65 batches"),
        (["--empty-cache-steps", "-1"], "not a number of steps"),
        (["--loss", "liger", "--task", "masked-lm"], "causal language models"),
    ],
)
def test_bad_input(plan: Any, config: str, arguments: list[str], message: str) -> None:
    """One clear line."""
    refuse(plan("trace", "--model", config, "--seq-len", "64", *arguments), message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("[1]", "one JSON object"),
        ('{"peft_type": "MAGIC"}', "'MAGIC' is not known"),
        ("{}", "is not known"),
        ('{"peft_type": "LORA", "ranks": 3}', "no option ranks"),
        ('{"peft_type": "LORA", "target_modules": ["nothing"]}', "cannot apply LORA"),
        ("[" * 50000, "nested too deeply"),
    ],
)
def test_broken_adapter_configs(plan: Any, config: str, tmp_path: Path, content: str, message: str) -> None:
    """A broken file names itself, a tuner that does not fit names PEFT."""
    path = tmp_path / "adapter_config.json"
    path.write_text(content, encoding="utf-8")
    refuse(plan("trace", "--model", config, "--peft-config", str(path), "--seq-len", "64"), message)


def test_models_that_transformers_refuses(plan: Any, tmp_path: Path) -> None:
    """An unknown architecture is named; code that a config points to is not run."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}), encoding="utf-8")
    refuse(plan("trace", "--model", str(path)), "cannot build 'mine'")


def test_without_the_libraries(plan: Any, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch is not installed the message says which extra brings it."""
    if hasattr(tuneplan, "profiling"):  # imported anew it becomes the package's attribute, which must be the old one again
        monkeypatch.setattr(tuneplan, "profiling", tuneplan.profiling)
    for name in [n for n in sys.modules if n == "torch" or n.startswith(("torch.", "tuneplan.profiling"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    refuse(plan("trace", "--model", config), "tuneplan[profile]")
