"""The GPU campaign's script, run on this machine's CPU with tiny models."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from tuneplan.profiling import campaign


def test_real_steps_on_the_cpu(tmp_path: Path) -> None:
    """Real tensors, real code: live bytes within 1 % of the estimate for models of 3 MB, where every small tensor shows."""
    out = tmp_path / "results.jsonl"
    campaign.main(["--out", str(out), "--device", "cpu"])
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]

    assert len(list(campaign.cpu_cases())) == len(lines)
    for line in lines:
        assert line["measured"]["allocated_bytes"] == pytest.approx(line["estimated"]["allocated_bytes"], rel=0.01)


def test_finished_cases_are_skipped(tmp_path: Path) -> None:
    """A campaign that was interrupted goes on where it stopped."""
    out = tmp_path / "results.jsonl"
    campaign.main(["--out", str(out), "--device", "cpu"])
    before = out.read_text(encoding="utf-8")
    campaign.main(["--out", str(out), "--device", "cpu"])

    assert before == out.read_text(encoding="utf-8")


def test_no_case_starts_after_the_time(tmp_path: Path) -> None:
    """The script stops by itself."""
    out = tmp_path / "results.jsonl"
    campaign.main(["--out", str(out), "--device", "cpu", "--seconds", "-1"])

    assert not out.exists()


def test_every_gpu_case_can_be_estimated() -> None:
    """Each case of the campaign is one that the planner knows."""
    for case in campaign.gpu_cases():
        config = campaign.config_of(case, shrink=False)
        assert campaign.request_of(case, config).spec.num_hidden_layers == config["num_hidden_layers"]
