"""How a workload runs on a machine: limits of latency and memory, and the search that stands behind training."""

from pathlib import Path
from typing import Any

import pytest
from workload_files import BUY, HEAD, SERVING, TODAY, TRAINING, answer

from tuneplan.planner.capacity.machines import market
from tuneplan.planner.capacity.read import read_workloads
from tuneplan.planner.capacity.serving_fit import LATE, Replica, ServingFits
from tuneplan.planner.capacity.training_fit import TrainingFits


def read(text: str, folder: Path) -> Any:
    """The workloads and machines of a file."""
    path = folder / "w.yaml"
    path.write_text(text)
    workloads, _ = read_workloads(path)
    return workloads, market(workloads.hardware, TODAY).machines


def replica(extra: str, folder: Path) -> tuple[Replica, ...]:
    """Replicas of the load on the first machine, with more keys."""
    workloads, machines = read(HEAD + SERVING + extra, folder)
    return ServingFits().replicas(workloads.serving[0], machines[0])[0]


def test_latency_limits_take_from_the_rate(tmp_path: Path) -> None:
    """The shorter a token or a first token may take, the fewer requests a replica serves."""
    rates = [replica(f"    token_p95: {ms} ms\n", tmp_path)[0].requests_per_second for ms in (30, 60, 200)]
    assert sorted(rates) == rates
    assert rates[0] < rates[-1]
    first = [replica(f"    first_token_p95: {ms} ms\n", tmp_path)[0].requests_per_second for ms in (90, 100, 5000)]
    assert sorted(first) == first
    assert first[0] < first[-1]


def test_what_limits_is_named(tmp_path: Path) -> None:
    """Memory without a limit of latency, and the latency where there is one."""
    assert "GPU memory" == replica("", tmp_path)[0].binding
    assert "token latency" == replica("    token_p95: 30 ms\n", tmp_path)[0].binding
    assert "first-token latency" == replica("    first_token_p95: 100 ms\n", tmp_path)[0].binding


def test_adapters_take_memory_and_time(tmp_path: Path) -> None:
    """Two hundred adapters leave room for fewer requests than none."""
    none = replica("", tmp_path)[0]
    many = replica("    adapter: lora(r=16)\n    adapters: 200\n", tmp_path)[0]
    assert many.concurrent < none.concurrent
    assert many.requests_per_second < none.requests_per_second


def test_replicas_on_more_cards(tmp_path: Path) -> None:
    """On four cards replicas of one, two and four are offered; the one that needs fewest cards for the peak is taken."""
    workloads, machines = read(HEAD.replace("g6e.xlarge, ", "") + SERVING, tmp_path)
    found, _ = ServingFits().replicas(workloads.serving[0], machines[0])
    assert [1, 2, 4] == [r.gpus for r in found]
    need = next(iter(answer(HEAD + SERVING, tmp_path).demands[0].needs.values()))
    assert 1 == need.gpus


def test_late_share() -> None:
    """A 95th percentile leaves one in twenty."""
    assert 0.05 == LATE


def test_training_times_scale_with_tokens(tmp_path: Path) -> None:
    """Twice the tokens take twice the hours, from one search."""
    workloads, machines = read(HEAD + BUY + TRAINING + TRAINING.removeprefix("training:\n").replace("tune", "b"), tmp_path)
    fits = TrainingFits(machines, TODAY)
    one, two = workloads.training
    double = two.model_copy(update={"tokens": 2 * 64 * 512 * (one.tokens // (64 * 512))})
    single = one.model_copy(update={"tokens": 64 * 512 * (one.tokens // (64 * 512))})
    for machine in machines:
        runs = [fits.runs(job, machine)[0] for job in (single, double)]
        assert runs[0] is not None
        assert runs[1] is not None
        assert runs[1].hours == pytest.approx(2 * runs[0].hours)


def test_a_deadline_takes_more_cards(tmp_path: Path) -> None:
    """Without a deadline the fewest GPU-hours win on machines of one's own; a deadline takes a faster way and says so."""
    workloads, machines = read(HEAD + BUY + TRAINING, tmp_path)
    fits = TrainingFits(machines, TODAY)
    box = machines[-1]
    job = workloads.training[0].model_copy(update={"deadline": None})
    thrifty, fastest, _ = fits.runs(job, box)
    assert thrifty is not None
    assert fastest is not None
    if fastest.hours < thrifty.hours:
        seconds = 3600 * (thrifty.hours + fastest.hours) / 2
        hasty, _, _ = fits.runs(job.model_copy(update={"deadline": seconds}), box)
        assert hasty is not None
        assert ("deadline", True) == (hasty.binding, hasty.gpus > thrifty.gpus)
    _, _, reason = fits.runs(job.model_copy(update={"deadline": 1.0}), box)
    assert "too long" in reason
