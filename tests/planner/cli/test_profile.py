"""`plan profile`: the step measured on this machine's CPU, and what is refused before anything runs."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from refusals import refuse

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from tuneplan.planner.units import format_gib  # noqa: E402
from tuneplan.profiling import measure as measuring  # noqa: E402
from tuneplan.profiling import profile_command  # noqa: E402

STEP = ("--seq-len", "16", "--attention", "eager", "--device", "cpu", "--warmup-steps", "1", "--steps", "2")


@pytest.fixture(autouse=True)
def without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in a process that torchrun started, and on one thread."""
    torch.set_num_threads(1)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def profile(plan: Any, model: str, *arguments: str) -> Any:
    """One measurement."""
    return plan("profile", "--model", model, *STEP, *arguments)


def test_json_contract(plan: Any, write_config: Any) -> None:
    """The common document: the keys of an estimate, plus what only a measurement has."""
    result = profile(plan, write_config(), "--method", "lora", "--json")
    assert (0, "") == (result.code, result.err)
    document = result.json()
    same = ("--method", "lora", "--seq-len", "16", "--attention", "eager")
    estimated = plan("estimate", "--model", write_config(), *same, "--json").json()

    assert (1, "measured") == (document["schema_version"], document["source"])
    assert set(estimated) - {"interval", "savings"} <= set(document)
    assert estimated["parameters"] == document["parameters"]
    assert {"load", "forward", "backward", "optimizer_step"} == set(document["phases"])
    assert document["peak"]["allocated_bytes"] == document["phases"][document["peak"]["phase"]]["peak_bytes"]
    assert document["peak"]["allocated_bytes"] == sum(document["components"].values())
    assert estimated["peak"] == document["estimated"]["peak"]
    assert {"date", "command", "git_commit", "device", "driver", "cuda", "python", "libraries"} == set(document["provenance"])
    assert torch.__version__ == document["provenance"]["libraries"]["torch"]


def test_file_and_report(plan: Any, write_config: Any, tmp_path: Path) -> None:
    """--out holds the document whose figures are printed, whole, with nothing left beside it."""
    folder = tmp_path / "results"
    folder.mkdir()
    result = profile(plan, write_config(), "--method", "full", "--out", str(folder / "step.json"))
    document = json.loads((folder / "step.json").read_text(encoding="utf-8"))

    assert ["step.json"] == [path.name for path in folder.iterdir()]
    assert f"Peak: allocated {format_gib(document['peak']['allocated_bytes'])};" in result.out
    assert re.search(rf"^backward +{re.escape(format_gib(document['phases']['backward']['peak_bytes']))} ", result.out, re.M)
    assert f"{document['tokens_per_second']:,.0f} tokens/s (" not in result.out
    assert f"{document['tokens_per_second']:,.0f} tokens/s" in result.out


def test_any_tuner_of_peft(plan: Any, write_config: Any, tmp_path: Path) -> None:
    """An adapter_config.json is measured as it is; without a part for it there is no estimate beside it."""
    adapter = tmp_path / "adapter_config.json"
    adapter.write_text(json.dumps({"peft_type": "HRA", "r": 4, "target_modules": ["q_proj"]}), encoding="utf-8")
    document = profile(plan, write_config(), "--peft-config", str(adapter), "--json").json()

    assert document["estimated"] is None
    assert document["parameters"]["trainable"] < document["parameters"]["total"] / 10


def test_other_tasks(plan: Any, write_config: Any) -> None:
    """A classifier is measured too."""
    document = profile(plan, write_config(), "--method", "full", "--task", "sequence-classification", "--json").json()
    assert "sequence-classification" == document["request"]["task"]


@pytest.mark.parametrize("words", ["CUDA out of memory. Tried to allocate 20.00 GiB", "CUDA error: device lost"])
def test_a_run_that_breaks_off(plan: Any, write_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """Exit code 1, one line on stderr, what was measured so far in the file, and the estimate beside it."""

    def broken(built: Any, settings: Any, phase: Any, *_: Any) -> None:
        phase("forward")
        raise RuntimeError(words)

    monkeypatch.setattr(measuring, "run_step", broken)
    out = tmp_path / "step.json"
    result = profile(plan, write_config(), "--out", str(out))
    document = json.loads(out.read_text(encoding="utf-8"))

    assert (1, 1) == (result.code, result.err.count("\n"))
    assert words in result.err
    assert words in document["failure"]["reason"]
    assert document["phases"]["backward"]["peak_bytes"] > 0
    assert document["estimated"]["peak"]["allocated_bytes"] > 0
    assert document["step_seconds"] is None


def test_more_than_the_host_has(plan: Any, write_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that would end with the process killed is refused."""
    monkeypatch.setattr(profile_command, "available_bytes", lambda: 1000)
    refuse(profile(plan, write_config()), "1000 B of memory free", "plan trace")


def test_more_than_the_host_has_of_a_model_that_is_not_known(plan: Any, write_config: Any) -> None:
    """Without an estimate the weights alone are held against the memory."""
    refuse(profile(plan, write_config(model_type="gemma2", head_dim=16, vocab_size=10**10)), "of memory free")


def test_a_card_that_is_too_small(plan: Any, write_config: Any) -> None:
    """Held against a named size of memory, what does not fit is exit code 1."""
    assert 1 == profile(plan, write_config(), "--gpu-memory", "1GiB", "--safety-margin", "0.9999").code


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "gpu"), "'gpu'"),
        (("--device", ""), "''"),
        (("--warmup-steps", "0"), "--warmup-steps 0"),
        (("--warmup-steps", "-3"), "--warmup-steps -3"),
        (("--steps", "0"), "--steps 0"),
        (("--steps", "100000000"), "--steps 100000000"),
        (("--steps", "two"), "two"),
        (("--attention", "flash"), "plan trace"),
        (("--loss", "liger"), "plan trace"),
        (("--optimizer", "paged_adamw_8bit"), "paged_adamw_8bit"),
        (("--data-parallel", "2"), "torchrun --nproc-per-node 2"),
        (("--zero-stage", "3"), "--data-parallel"),
        (("--task", "juggling"), "juggling"),
        (("--rank", "1000000000"), "1000000000"),
        (("--target-modules", "nothing"), "nothing"),
        (("--micro-batch-size", "0"), "0"),
        (("--out", "/nowhere/at/all/step.json"), "/nowhere/at/all"),
        (("--out", "/"), "folder"),
        (("--peft-config", "/nowhere/adapter_config.json"), "/nowhere"),
    ],
)
def test_bad_input(plan: Any, write_config: Any, arguments: tuple[str, ...], words: str) -> None:
    """What cannot be measured here is refused in one line that says what to do instead."""
    refuse(profile(plan, write_config(), *arguments), words)


def test_no_gpu(plan: Any, write_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """--device cuda without a GPU is refused, and says what runs without one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refuse(profile(plan, write_config(), "--device", "cuda"), "sees no GPU", "--device cpu", "plan trace")


def test_a_file_that_cannot_be_made(plan: Any, write_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place without permission is found before the step runs."""

    def refused(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refused)
    refuse(profile(plan, write_config(), "--out", str(tmp_path / "step.json")), "Permission denied")


@pytest.mark.parametrize(
    "changes",
    [{"num_attention_heads": 5}, {"model_type": "no_such_model"}, {"hidden_act": "no_such_function"}, {"model_type": None}],
)
def test_configs_that_transformers_refuses(plan: Any, write_config: Any, changes: dict[str, Any]) -> None:
    """Refused in one line, with the reason that transformers gives."""
    refuse(profile(plan, write_config(**changes)))


def test_without_torch(write_config: Any) -> None:
    """The base install says which extra is missing."""
    code = (
        "import sys; sys.modules['torch'] = None; from tuneplan.planner.cli.main import run; "
        "sys.exit(run(['profile', '--model', sys.argv[1]]))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code, write_config()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": str(root / "src"), "PATH": ""},
    )
    assert (2, "") == (done.returncode, done.stdout)
    assert "pip install 'tuneplan[profile]'" in done.stderr
    assert 1 == done.stderr.count("\n")
