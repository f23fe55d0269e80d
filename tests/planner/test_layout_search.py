"""The search over splits of the model: every plan is the estimate of its configuration, and every layout is looked at."""

import json
from dataclasses import replace
from datetime import date
from math import prod
from pathlib import Path

import pytest

from tuneplan.planner.cli.main import run
from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.estimate import estimate
from tuneplan.planner.job import Job
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.parallel.splits import splits
from tuneplan.planner.plan import Plan
from tuneplan.planner.search import Search, find
from tuneplan.planner.target import targets
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding

TODAY = date(2026, 9, 1)
JOB = Job(
    spec=read_spec(*load("tinyllama")),
    methods=(parse("lora"),),
    targets=tuple(targets(["a100-80g"], (4,))),
    tokens=10**7,
    global_batch_size=8,
    settings=Settings(seq_len=512),
    optimizers=(OPTIMIZERS["adamw"],),
    layouts="all",
)


def degrees(split: Sharding) -> tuple[int, ...]:
    """Data, tensor, pipeline, context and expert parallel."""
    return (
        split.data_parallel,
        split.tensor_parallel,
        split.pipeline_parallel,
        split.context_parallel,
        split.expert_parallel,
    )


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 4), (4, 10), (8, 20), (6, 4), (3, 1)])
def test_every_split(count: int, expected: int) -> None:
    """Powers of two whose product is the number of cards, each once, data parallelism alone first."""
    found = splits(count, "all", mixture=False)
    assert expected == len(found) == len({degrees(split) for split in found})
    assert {count} == {split.gpu_count for split in found}
    assert Sharding(count) == found[0]


def test_experts_are_split_over_data_parallel_ranks() -> None:
    """A mixture has more layouts: each number of data-parallel ranks with each divisor of it for the experts."""
    found = splits(8, "all", mixture=True)
    assert len(found) == sum((split.data_parallel).bit_length() for split in splits(8, "all", mixture=False))
    assert all(split.data_parallel % split.expert_parallel == 0 for split in found)


def test_data_parallelism_alone_is_the_default() -> None:
    """Nothing else is looked at."""
    assert (Sharding(8),) == splits(8, "data", mixture=True)
    assert "data" == replace(JOB, layouts="data").layouts == Job.__dataclass_fields__["layouts"].default


def test_unknown_layouts() -> None:
    """An error that names the words."""
    with pytest.raises(UnknownNameError, match="'al'"):
        find(replace(JOB, layouts="al"), TODAY)


@pytest.fixture(scope="module")
def looked_at() -> list[Plan]:
    """All candidates of four cards."""
    search = Search(JOB, TODAY)
    return [search._priced(plan) for plan in search._candidates(JOB.methods[0], JOB.targets[0], 4)]


def test_every_layout_is_looked_at(looked_at: list[Plan]) -> None:
    """All ten splits of four cards, those with several data-parallel ranks under the lowest stage that fits."""
    assert {degrees(split) for split in JOB.splits(4)} == {degrees(plan.request.sharding) for plan in looked_at}
    assert {4} == {plan.gpu_count for plan in looked_at}


def test_candidates_are_estimates(looked_at: list[Plan]) -> None:
    """Bytes by phase, runtime and seconds of a few of each layout are those of `plan estimate` for the same request."""
    for plan in looked_at[::5]:
        alone = estimate(plan.request, advice=False)
        phases = {name: (phase.peak_bytes, phase.levels) for name, phase in alone.memory.phases.items()}
        assert phases == {name: (phase.peak_bytes, phase.levels) for name, phase in plan.memory.phases.items()}
        assert (alone.runtime, alone.time) == (plan.runtime, plan.time)


def test_more_layouts_are_never_worse() -> None:
    """The best plan over all layouts costs no more than the best of data parallelism alone."""
    best, plain = (find(replace(JOB, layouts=layouts), TODAY).plans[0] for layouts in ("all", "data"))
    assert best.usd is not None
    assert plain.usd is not None
    assert best.usd <= plain.usd


def test_splits_that_the_model_does_not_have() -> None:
    """They are passed over: attention that reads a whole mask cannot go around a ring."""
    job = replace(JOB, settings=replace(JOB.settings, attention="eager"))
    search = Search(job, TODAY)
    found = {plan.request.sharding.context_parallel for plan in search._candidates(job.methods[0], job.targets[0], 4)}
    assert {1} == found
    with pytest.raises(InputError, match="ring attention"):
        search._split(job.methods[0], job.settings_for(job.methods[0], job.targets[0]), Sharding(1, context_parallel=4))


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON names the degrees of the plan, the report the layouts; no files are written for a split model."""
    words = ["--model", "70b", "--gpu", "a100-80g", "--gpus", "2", "--method", "lora", "--micro-batch-size", "1"]
    words += ["--gradient-checkpointing", "--optimizer", "adamw", "--layouts", "all"]
    assert 0 == run([*words, "--json"])
    text = capsys.readouterr().out
    answer = json.loads(text)
    layout = answer["recommended"]["parallelism"]
    assert "all" == answer["request"]["layouts"]
    assert 2 == layout["data_parallel"] * prod(layout.get(f"{name}_parallel", 1) for name in ("tensor", "pipeline", "context"))
    assert 1 == layout["data_parallel"]
    file = tmp_path / "plan.json"
    file.write_text(text)
    assert 2 == run(["export", "--plan", str(file), "--out", str(tmp_path / "out")])
    assert "splits the model" in capsys.readouterr().err
