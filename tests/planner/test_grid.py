"""The search on arrays against the search one by one: the same candidates are taken, with the same bytes, hours and dollars."""

import multiprocessing
import os
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from tuneplan.planner import grid_found, grid_workers
from tuneplan.planner import search as searching
from tuneplan.planner.data.amount import of_job
from tuneplan.planner.data.batches import Batches
from tuneplan.planner.data.lengths import of_counts
from tuneplan.planner.errors import InputError
from tuneplan.planner.grid import Grid
from tuneplan.planner.grid_found import Choice, Found, every
from tuneplan.planner.job import Job
from tuneplan.planner.lifetimes import least_saved
from tuneplan.planner.memory import walk
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.parallel.step import sequence
from tuneplan.planner.plan import Plan, Rejected, front, rank
from tuneplan.planner.search import Search, find
from tuneplan.planner.target import targets
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.wall_clock import Overheads, run_seconds, wall_clock
from tuneplan.profiling import small_models

TODAY = date(2026, 9, 1)
JOB = Job(
    spec=read_spec(*load("8b")),
    methods=tuple(parse(name) for name in ("full", "lora", "qlora", "ia3")),
    targets=tuple(targets(["a100-80g", "l40s", "t4", "rtx-4090", "mi300x"], None)),
    tokens=10**7,
    global_batch_size=32,
    settings=Settings(seq_len=1024),
)
SPOT = Overheads(startup_seconds=300, evaluation_tokens=10**6, save_steps=7, interruption_hours=5)
JOBS = {
    "cost": JOB,
    "time": replace(JOB, objective="time", max_usd=Decimal(2)),
    "memory": replace(JOB, objective="memory", max_hours=0.5),
    "spot": replace(JOB, purchase="spot", overheads=SPOT, global_batch_size=24),
    "optimizers": replace(JOB, optimizers=tuple(OPTIMIZERS[n] for n in ("adamw_8bit", "adafactor", "paged_adamw_8bit", "lion"))),
    "gathered": replace(JOB, spec=read_spec(*load("70b"))),
    "layouts": replace(JOB, methods=(parse("full"), parse("lora")), targets=tuple(targets(["l40s", "t4"], (4,))), layouts="all"),
    "two machines": replace(JOB, methods=(parse("qlora"),), targets=tuple(targets(["l40s"], (2, 8, 16)))),
    "odd sizes": replace(JOB, targets=tuple(targets(["l40s"], (1, 3, 5))), micro_batch_sizes=(3, 5), global_batch_size=15),
    "one by one": replace(JOB, micro_batch_sizes=(3,), global_batch_size=48, checkpointing=("reentrant",), zero_stages=(2, 3)),
}


@pytest.mark.parametrize("name", JOBS)
def test_the_same_is_taken(name: str) -> None:
    """Every method on every number of every card: the same candidate, whether it fits, by how much it is short, and its rank."""
    job = JOBS[name]
    search = Search(job, TODAY)
    choices = every(Grid(search, pruned=False).found(), job)
    assert len(choices) == len(job.methods) * sum(len(target.counts) for target in job.targets)
    for choice in choices:
        found = search._best(choice.method, choice.target, choice.sharding.gpu_count)
        assert found is not None
        plan = found if isinstance(found, Plan) else found.plan
        assert _place(choice) == (
            plan.request.settings.micro_batch_size,
            plan.request.settings.gradient_checkpointing,
            plan.request.optimizer.name,
            plan.request.sharding,
        )
        assert (choice.fits, choice.short_by_bytes) == (isinstance(found, Plan), plan.short_by_bytes)
        if choice.fits or choice.over:
            assert rank(plan, job.objective) == pytest.approx(choice.key, rel=1e-9)
        if choice.over:
            assert isinstance(found, Rejected)
            assert found.reason


@pytest.mark.parametrize("name", ["gathered", "optimizers", "layouts", "time"])
def test_what_is_passed_over_changes_nothing(name: str) -> None:
    """Wherever something fits, the same is taken; of the rest, what is not sure is no more than it is."""
    job = JOBS[name]
    whole, pruned = (every(Grid(Search(job, TODAY), pruned=pruned).found(), job) for pruned in (False, True))
    sure = [row for found in Grid(Search(job, TODAY)).found() for row in found.sure]
    for expected, found, known in zip(whole, pruned, sure, strict=True):
        if known:
            assert expected == found
        else:
            assert not any((expected.fits, expected.over, found.fits, found.over))
            assert 0 < found.short_by_bytes <= expected.short_by_bytes
    assert any(sure)


@pytest.mark.parametrize("method", ["full", "dora", "pfeiffer", "partial_layers", "ia3"])
def test_what_layers_save_at_least(method: str) -> None:
    """Of every family: what is read off layers that run again is no more than what a forward leaves where they do not."""
    compared = 0
    for name in small_models.names():
        model = small_models.load(name)
        spec = read_spec(model.name, ConfigReader(model.config, model.name), model.task)
        run = Settings(2, 64, gradient_checkpointing="off", image_size=model.image_size)
        again = replace(run, gradient_checkpointing="non-reentrant")
        try:
            least = least_saved(build(spec, parse(method), again))
        except InputError:
            continue
        left = sequence(walk(build(spec, parse(method), run), run).forward)
        assert 0 <= least <= sum(left.delta), name
        compared += least > 0
    assert compared > 10


def test_methods_of_the_same_parts_are_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stands in the answer with figures of its own."""
    job = replace(JOB, methods=tuple(parse(name) for name in ("lora", "ia3", "lora_plus")), targets=JOB.targets[:1])
    assert grid_workers.firsts(job.methods) == [0, 1, 0]
    told: list[int] = []
    found, evaluated = grid_workers.found(Search(job, TODAY), told.append)
    alone, count = grid_workers.found(Search(replace(job, methods=job.methods[2:]), TODAY))
    assert evaluated == sum(told) == 3 * count
    choices = [choice for choice in every(found, job) if choice.method.name == "lora_plus"]
    assert choices == every(alone, replace(job, methods=job.methods[2:]))


def test_a_miss_that_is_shown_is_worked_out() -> None:
    """Where one that is not sure would be among the closest, its method is evaluated again with nothing passed over."""
    job = JOBS["gathered"]
    found = [replace(one, sure=np.zeros_like(one.sure)) for one in Grid(Search(job, TODAY)).found()]
    asked: list[int] = []

    def again(method: int) -> list[Found]:
        asked.append(method)
        return grid_workers.whole(Search(job, TODAY), method)

    best = grid_found.best(found, job, 5, 4, again)
    whole = grid_found.best(Grid(Search(job, TODAY), pruned=False).found(), job, 5, 4, again)
    assert asked
    assert (whole.fitting, whole.others, whole.left_out) == (best.fitting, best.others, best.left_out)


def _place(choice: Choice) -> tuple[object, ...]:
    return (
        choice.settings.micro_batch_size,
        choice.settings.gradient_checkpointing,
        choice.optimizer.name,
        choice.sharding,
    )


def test_a_large_search_is_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same plans in the same order and the same totals, whichever way a job is searched."""
    monkeypatch.setattr(searching, "LARGE", 10**9)
    small = find(JOB, TODAY)
    told: list[int] = []
    monkeypatch.setattr(searching, "LARGE", 1)
    monkeypatch.setattr(searching, "MOST_PLANS", 1000)
    large = find(JOB, TODAY, told.append)
    assert [_figures(plan) for plan in small.plans] == [_figures(plan) for plan in large.plans]
    assert JOB.candidates == sum(told) == large.evaluated
    assert len(small.rejected) == len(large.rejected) + large.rejected_left_out
    assert large.rejected[0].plan.short_by_bytes == min(r.plan.short_by_bytes for r in small.rejected)


def test_what_arrays_do_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of other lengths are searched one by one, however large the search."""
    data = of_job(Batches(of_counts({100: 40, 900: 8}, "test"), 1024), 1, None, None)
    few = replace(JOB, methods=(parse("lora"),), targets=JOB.targets[:1], optimizers=JOB.optimizers[:1], data=data)
    small = find(few, TODAY)
    monkeypatch.setattr(searching, "LARGE", 1)
    assert small.plans
    assert [_figures(plan) for plan in small.plans] == [_figures(plan) for plan in find(few, TODAY).plans]


def _figures(plan: Plan) -> tuple[Any, ...]:
    request = plan.request
    return request.method.name, plan.target.label, request.sharding, plan.device_bytes, plan.hours, plan.usd


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_processes_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search over two processes takes the same candidates; a method that does not fit the model is the same error."""
    alone, count = grid_workers.found(Search(JOB, TODAY))
    monkeypatch.setattr(grid_workers, "WORTH_FORKING", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    told: list[int] = []
    together, again = grid_workers.found(Search(JOB, TODAY), told.append)
    assert (every(alone, JOB), count) == (every(together, JOB), again)
    assert len(JOB.methods) == len(told)
    with pytest.raises(InputError, match="no biases"):
        grid_workers.found(Search(replace(JOB, methods=(parse("lora"), parse("bitfit"))), TODAY))


def test_only_the_best_are_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left out is counted, and is worse."""
    monkeypatch.setattr(searching, "LARGE", 10**9)
    whole = find(JOB, TODAY)
    monkeypatch.setattr(searching, "LARGE", 1)
    monkeypatch.setattr(searching, "MOST_PLANS", 5)
    few = find(JOB, TODAY)
    assert (5, len(whole.plans) - 5) == (len(few.plans), few.plans_left_out)
    assert [_figures(plan) for plan in whole.plans[:5]] == [_figures(plan) for plan in few.plans]


def test_a_method_that_does_not_fit_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error either way."""
    job = replace(JOB, methods=(parse("bitfit"),))
    for limit in (1, 10**9):
        monkeypatch.setattr(searching, "LARGE", limit)
        with pytest.raises(InputError, match="no biases"):
            find(job, TODAY)


def test_nothing_beats_the_front() -> None:
    """A plan is on the front exactly if no other is at least as good in every respect and better in one."""
    plans = find(JOB, TODAY).plans
    keys = [(plan.usd or Decimal("Infinity"), plan.hours or float("inf"), plan.short_by_bytes) for plan in plans]
    for own, best in zip(keys, front(plans), strict=True):
        beaten = any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in keys)
        assert best != beaten
    assert front(plans)[0]


@pytest.mark.parametrize("spot", [False, True])
@pytest.mark.parametrize("overheads", [Overheads(), SPOT, Overheads(interruption_hours=0.02)])
def test_run_seconds(spot: bool, overheads: Overheads) -> None:
    """The whole run of arrays is that of one run after the other."""
    steps, saved = np.array([[0.5, 3.0], [700.0, np.inf]]), np.array([[10**9], [10**12]])
    found = run_seconds(steps, 500, 1e-6, saved, overheads, spot)
    for i, j in np.ndindex(2, 2):
        if np.isfinite(steps[i, j]):
            one = wall_clock(float(steps[i, j]), 500, 1e-6, int(saved[i, 0]), overheads, spot).total
            assert found[i, j] == pytest.approx(one, rel=1e-12)
        else:
            assert found[i, j] == np.inf
