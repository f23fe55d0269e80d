"""Exported TRL jobs really run, on the CPU with a tiny model and random weights, and their peak beside the plan's.

The step is that of SFTTrainer as it is; storages are tracked by the callback that the exported script brings along.
"""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="the exported script needs TRL")
pytest.importorskip("datasets")

import exported_run

from tuneplan.planner.cli.main import run

TOLERANCE = 0.01
"""The loop's own tensors (masks, positions, metrics, labels) are not in the plan: up to 0.2 % of these small steps."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The model's folder and the texts."""
    folder = tmp_path_factory.mktemp("tiny")
    return exported_run.write_model(folder / "model"), exported_run.write_texts(folder / "texts.jsonl")


def export(made: tuple[str, str], out: Path, *words: str) -> dict[str, Any]:
    """Export a plan for a card of 24 GiB; gives the plan."""
    model, texts = made
    fixed = ["--model", model, "--train-data", texts, "--out", str(out), "--gpu-memory", "24GiB", "--seq-len", "128"]
    assert 0 == run(["export", *fixed, "--tokens", "4096", "--precision", "pure", *words])
    plan: dict[str, Any] = json.loads((out / "plan.json").read_text())
    return plan


@pytest.mark.parametrize(
    "words",
    [
        ("--method", "lora", "--no-gradient-checkpointing"),
        ("--method", "full", "--gradient-checkpointing", "--optimizer", "adamw_fused"),
        ("--method", "lora(r=4,autocast_adapter_dtype=false)", "--loss", "trl", "--gradient-checkpointing"),
        ("--method", "full", "--loss", "trl", "--no-gradient-checkpointing"),
        ("--method", "ia3", "--no-gradient-checkpointing", "--attention", "eager"),
        ("--method", "lora", "--no-gradient-checkpointing", "--global-batch-size", "8"),
        ("--method", "qlora", "--gradient-checkpointing", "--attention", "eager"),
        ("--method", "qlora(prepare_kbit=false)", "--no-gradient-checkpointing"),
    ],
    ids=" ".join,
)
def test_one_process(made: tuple[str, str], tmp_path: Path, words: tuple[str, ...]) -> None:
    """Adapters and full fine-tuning, both losses, with and without checkpointing and accumulation."""
    plan = export(made, tmp_path / "run", "--micro-batch-size", "4", "--global-batch-size", "4", *words)
    measured = exported_run.run_here(tmp_path / "run")
    assert 3 == measured["steps"]
    assert 4 * 128 == measured["largest_tokens"]
    assert plan["peak"]["allocated_bytes"] == measured["predicted_bytes"]
    assert plan["peak"]["allocated_bytes"] == pytest.approx(measured["peak"]["allocated_bytes"], rel=TOLERANCE)


@pytest.mark.parametrize(
    ("method", "stage"), [("full", "0"), ("full", "3"), ("lora", "3"), ("full", "2")], ids=["ddp", "fsdp", "fsdp-lora", "fsdp-2"]
)
def test_two_processes(made: tuple[str, str], tmp_path: Path, method: str, stage: str) -> None:
    """The first of two ranks, under DDP with its buckets and under FSDP2 in accelerate's units, started by torchrun with gloo."""
    words = ("--gpus", "2", "--zero-stage", stage, "--micro-batch-size", "4", "--global-batch-size", "8", "--method", method)
    plan = export(made, tmp_path / "run", *words, "--no-gradient-checkpointing", "--optimizer", "adamw_fused")
    measured = exported_run.run_ranks(tmp_path / "run", 2)
    assert 3 == measured["steps"]
    assert plan["peak"]["allocated_bytes"] == pytest.approx(measured["peak"]["allocated_bytes"], rel=TOLERANCE)
