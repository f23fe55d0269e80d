"""Steps under torchrun: what the environment says, which layouts are refused, and two real processes on this CPU."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from traced import small  # noqa: E402

from tuneplan.planner.errors import InputError  # noqa: E402
from tuneplan.planner.methods.compose import parse  # noqa: E402
from tuneplan.planner.training.settings import Settings  # noqa: E402
from tuneplan.planner.training.sharding import SINGLE, Sharding  # noqa: E402
from tuneplan.profiling.ranks import ALONE, Ranks, check, from_environment  # noqa: E402
from tuneplan.profiling.subject import Subject  # noqa: E402

ROOT = Path(__file__).parents[2]
SUBJECT = Subject("tiny", small(), parse("lora"), settings=Settings())
TWO = Ranks(1, 1, 2)
BOTH = """
import sys
from torch import distributed
from exported_run import leave
from tuneplan.planner.cli.main import run

distributed.init_process_group("gloo")
model, out = sys.argv[1:]
for stage in ("0", "3"):
    layout = ("--data-parallel", "2", "--zero-stage", stage, "--out", f"{out}/{stage}.json")
    step = ("--attention", "eager", "--seq-len", "16", "--device", "cpu", "--warmup-steps", "1", "--steps", "1")
    assert run(["profile", "--model", model, "--method", "lora", *step, *layout, "--json"]) == 0
leave()
"""
LONGEST_SECONDS = 120


def set_environment(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    """Only these of torchrun's variables."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_one_process_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the environment: this process is all there is."""
    set_environment(monkeypatch)
    assert ALONE == from_environment()


def test_what_torchrun_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank, local rank and world size are read; only the first rank reports."""
    set_environment(monkeypatch, RANK="3", LOCAL_RANK="1", WORLD_SIZE="4")
    assert Ranks(3, 1, 4) == from_environment()
    assert (False, True) == (from_environment().first, ALONE.first)


@pytest.mark.parametrize(
    "values",
    [
        {"RANK": "0"},
        {"RANK": "x", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "0"},
    ],
)
def test_a_broken_environment(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    """Half of the variables, words for numbers or a rank beyond the last are refused."""
    set_environment(monkeypatch, **values)
    with pytest.raises(InputError, match="torchrun"):
        from_environment()


@pytest.mark.parametrize(
    ("ranks", "sharding", "method", "words"),
    [
        (ALONE, Sharding(2), "lora", "torchrun --nproc-per-node 2"),
        (TWO, SINGLE, "lora", "--data-parallel 2"),
        (TWO, Sharding(2, 1), "lora", "DeepSpeed"),
        (ALONE, Sharding(1, 3), "lora", "--data-parallel"),
        (TWO, Sharding(2, 3), "qlora", "packed"),
        (TWO, Sharding(tensor_parallel=2), "lora", "TP x 2 is not measured"),
        (TWO, Sharding(2, 3, offload=("parameters", "optimizer")), "lora", "--offload"),
    ],
)
def test_layouts_that_cannot_run(ranks: Ranks, sharding: Sharding, method: str, words: str) -> None:
    """What was not started, or what the engines cannot split, is refused before anything is built."""
    with pytest.raises(InputError, match=words):
        check(ranks, sharding, replace(SUBJECT, method=parse(method)))


def test_two_processes(tmp_path: Path) -> None:
    """DDP and FSDP2 on two real processes: the figures of both are in the file, and splitting the weights halves them."""
    (tmp_path / "config.json").write_text(json.dumps(small(num_hidden_layers=2)), encoding="utf-8")
    script = tmp_path / "both.py"
    script.write_text(BOTH, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests/support'}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*launch, str(tmp_path / "config.json"), str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    try:
        _, said = process.communicate(timeout=LONGEST_SECONDS)
    finally:
        process.terminate()  # torchrun ends its workers
    assert 0 == process.returncode, said[-2000:]
    replicated, split = (json.loads((tmp_path / f"{stage}.json").read_text(encoding="utf-8")) for stage in ("0", "3"))

    for stage, document in ((0, replicated), (3, split)):
        assert [0, 1] == [rank["rank"] for rank in document["ranks"]]
        assert (2, stage) == (document["request"]["data_parallel"], document["request"]["zero_stage"])
        # a rank frees what it sent when the other has it: now and then one holds gathered weights for longer, a quarter more
        first, second = (rank["phases"]["backward"]["peak_bytes"] for rank in document["ranks"])
        assert first == pytest.approx(second, rel=0.3)
    ends = [document["phases"]["load"]["end_bytes"] for document in (replicated, split)]
    assert ends[1] == pytest.approx(ends[0] / 2, rel=0.05)
