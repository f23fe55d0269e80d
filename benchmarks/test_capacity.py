"""How long a thousand workloads take. Run with `pytest benchmarks/test_capacity.py --benchmark-only`."""

import random
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tuneplan.planner.capacity.options import plan_capacity
from tuneplan.planner.capacity.read import read_workloads
from tuneplan.planner.models.lookup import load
from tuneplan.planner.serving.kv_cache import CACHE_FORMATS
from tuneplan.planner.serving.read_kv import read_kv

HEAD = """version: 1
horizon: 12 months
growth: {growth}
hardware:
  rent: [g6e.xlarge, g6e.12xlarge, p4de.24xlarge, g5.xlarge, g5.12xlarge]
  buy:
    - {{name: box, gpu: rtx-4090, gpus: 4, machine_price: 12000 USD, host_power: 400 W, electricity: 0.13 USD/kWh, pue: 1.5,
       hosting: 150 USD/kW/month, lifetime: 36 months, source: example, date: 2026-01-01}}
"""
MODELS = ("7b", "8b", "qwen2.5-7b", "qwen2.5-1.5b")


def workloads(count: int, growth: str) -> str:
    """Half training, half serving, no two alike."""
    dice = random.Random(1)
    jobs = [
        f"  - {{name: t{i}, model: {dice.choice(MODELS)}, method: {dice.choice(['lora', 'qlora'])}, seq_len: 1024, "
        f"tokens: {dice.randint(1, 50)}M, runs: {dice.randint(1, 8)}/month, deadline: {dice.randint(30, 90)} hours}}"
        for i in range(count // 2)
    ]
    lines = [HEAD.format(growth=growth), "training:", *jobs]
    lines.append("serving:")
    for i in range(count // 2):
        mean = dice.randint(100, 900)
        lines.append(
            f"  - {{name: s{i}, model: {dice.choice(MODELS)}, requests: {dice.randint(1, 40) / 10}/s, token_p95: 100 ms, "
            f"prompt_tokens: {{mean: {mean}, p95: {3 * mean}}}, output_tokens: {{mean: {dice.randint(50, 400)}, p95: 1000}}}}"
        )
    return "\n".join(lines)


@pytest.mark.parametrize(("count", "growth"), [(10, "2%/month"), (100, "2%/month"), (1000, "0%/month"), (1000, "2%/month")])
def test_workloads(benchmark: Any, tmp_path: Path, count: int, growth: str) -> None:
    """File to answer: needs on six machines, three options, every month, the schedule and the sensitivities."""
    path = tmp_path / "w.yaml"
    path.write_text(workloads(count, growth))

    def run() -> Any:
        return plan_capacity(*read_workloads(path), date(2026, 11, 1))

    answer = benchmark.pedantic(run, rounds=3, warmup_rounds=0)
    best = answer.recommended
    assert best is not None
    benchmark.extra_info["gap"] = None if best.lower_bound is None else best.total / best.lower_bound - 1


def test_cache_of_a_model(benchmark: Any) -> None:
    """From a config to the bytes of a sequence."""
    _, config = load("70b")
    assert benchmark(lambda: read_kv(config).sequence_bytes(4096, CACHE_FORMATS["bf16"])) == 4096 * 327680
