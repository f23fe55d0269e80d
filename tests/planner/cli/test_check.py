"""`plan check` on the command line: what is asked for wrongly, and files that are left alone."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from refusals import refuse
from traced import small

pytestmark = pytest.mark.traced

CASE = '[cases.{name}]\nmodel = "config.json"\nmethod = "lora"\nseq_len = {length}\n'


@pytest.fixture
def folder(tmp_path: Path, plan: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two cases of a small model and their baseline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    (tmp_path / "config.json").write_text(json.dumps(small(num_hidden_layers=2)), encoding="utf-8")
    write(tmp_path, CASE.format(name="a", length=64), CASE.format(name="b", length=32))
    assert 0 == plan("check", "--update").code
    return tmp_path


def write(folder: Path, *parts: str) -> None:
    """The file of cases."""
    (folder / "tuneplan.toml").write_text("".join(parts), encoding="utf-8")


def baseline(folder: Path) -> bytes:
    """The baseline as it is."""
    return (folder / "tuneplan-baseline.toml").read_bytes()


def test_the_same_twice(folder: Path, plan: Any) -> None:
    """The same code needs the same bytes, and recording it again writes the same file."""
    before = baseline(folder)
    outcome = plan("check", "--json")

    assert (0, "") == (outcome.code, outcome.err)
    assert ["ok", "ok"] == [case["status"] for case in outcome.json()["cases"]]
    assert 0 == plan("check", "a", "--update").code
    assert before == baseline(folder)


def test_a_larger_model(folder: Path, plan: Any) -> None:
    """A config that grew is a regression, and the number of parameters is named as the cause."""
    (folder / "config.json").write_text(json.dumps(small(num_hidden_layers=3)), encoding="utf-8")
    outcome = plan("check", "a", "--json")
    (case,) = outcome.json()["cases"]

    assert 1 == outcome.code
    assert case["causes"][0].startswith("parameters changed: ")
    assert {"peak", "weights"} <= {change["name"] for change in case["changes"] if change["exceeded"]}


def test_other_versions_are_named_as_the_cause(folder: Path, plan: Any) -> None:
    """A baseline of another torch, and fewer bytes: the version is the cause."""
    from tuneplan.profiling.regression.baseline import Baseline, read
    from tuneplan.profiling.regression.baseline import write as record

    path = folder / "tuneplan-baseline.toml"
    before = read(path)
    a = before.cases["a"]
    name, size = next((n, s) for n, s in a.places["activations"].items() if "mlp.act_fn" in n)
    less = a.model_copy(
        update={
            "peak_bytes": a.peak_bytes - size,
            "at_peak": {**a.at_peak, "weights": a.at_peak["weights"] - size},
            "highest": {**a.highest, "activations": a.highest["activations"] - size},
            "places": {**a.places, "activations": {n: s for n, s in a.places["activations"].items() if n != name}},
        }
    )
    record(path, Baseline({**before.versions, "torch": "1.0"}, {**before.cases, "a": less}), "tuneplan.toml")
    outcome = plan("check", "a", "--json")

    assert (1, "") == (outcome.code, outcome.err)
    assert "versions changed: torch 1.0 -> " in outcome.json()["cases"][0]["causes"][0]
    assert ["mlp.act_fn"] == [new["module"][-10:] for new in outcome.json()["cases"][0]["new_bytes"]]
    assert "that is the cause" in outcome.json()["cases"][0]["causes"][0]


def test_a_case_that_was_removed(folder: Path, plan: Any) -> None:
    """The baseline remembers it: an error until it is updated."""
    write(folder, CASE.format(name="a", length=64))
    refuse(plan("check"), "remembers b, which ", "no longer has", "plan check --update")

    assert 0 == plan("check", "--update").code
    assert b"cases.b" not in baseline(folder)


def test_a_case_that_is_new_or_other(folder: Path, plan: Any) -> None:
    """A case without a baseline and one whose settings changed are errors; the others are checked all the same."""
    write(folder, *(CASE.format(name=name, length=length) for name, length in (("a", 64), ("b", 48), ("c", 32))))
    outcome = plan("check", "--json")

    assert 2 == outcome.code
    assert ["ok", "error", "error"] == [case["status"] for case in outcome.json()["cases"]]
    assert "case b was recorded with seq_len = 32 and has 48 now" in outcome.err
    assert "case c is not in " in outcome.err


def test_an_update_that_fails_writes_nothing(folder: Path, plan: Any) -> None:
    """One case that cannot run keeps the whole baseline as it was."""
    before = baseline(folder)
    write(folder, CASE.format(name="a", length=128), '[cases.b]\nmodel = "no-such-model"\n')
    outcome = plan("check", "--update")

    assert 2 == outcome.code
    assert "case b: Unknown model 'no-such-model'" in outcome.err
    assert "left as it is" in outcome.out
    assert before == baseline(folder)


def test_wrong_words(folder: Path, plan: Any) -> None:
    """A case, a file and a report that cannot be are refused in a line."""
    refuse(plan("check", "aa"), "Unknown case 'aa'", "'a'")
    refuse(plan("check", "--config", "none.toml"), "none.toml")
    (folder / "tuneplan.toml").unlink()
    refuse(plan("check"), "neither a tuneplan.toml nor")


def test_a_conflict_in_the_baseline(folder: Path, plan: Any) -> None:
    """A merge that is not over is refused by its line."""
    path = folder / "tuneplan-baseline.toml"
    path.write_text("<<<<<<< HEAD\n" + path.read_text())
    refuse(plan("check"), "tuneplan-baseline.toml:1 is in the middle of a merge conflict")


def test_a_real_step_on_the_cpu(folder: Path, plan: Any) -> None:
    """A case in words on real tensors: the same bytes twice, with the components of a trace."""
    write(folder, CASE.format(name="a", length=64), 'device = "cpu"\n')
    assert 0 == plan("check", "--update").code
    outcome = plan("check", "--json")

    assert 0 == outcome.code
    found = {change["name"]: change["bytes"] for change in outcome.json()["cases"][0]["changes"]}
    assert found["activations"] > 0
    assert found["weights"] < found["peak"]


def test_an_adapter_config(folder: Path, plan: Any) -> None:
    """A case may bring an adapter_config.json, relative to the file of cases."""
    adapter = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(adapter), encoding="utf-8")
    write(folder, '[cases.a]\nmodel = "config.json"\npeft_config = "adapter_config.json"\nseq_len = 32\n')

    assert 0 == plan("check", "--update").code
    assert b"trainable_parameters = 8192\n" in baseline(folder)
    assert 0 == plan("check").code
