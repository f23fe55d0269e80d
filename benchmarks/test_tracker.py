"""What tracking costs: the same training step on CPU tensors with and without the storage tracker.

    python -m pytest benchmarks/test_tracker.py --benchmark-only

The model is small, so that operators are short and the tracker weighs as much as it can.
"""

import time
from contextlib import nullcontext
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from tuneplan.planner.methods.compose import parse
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling import small_models
from tuneplan.profiling.build import build
from tuneplan.profiling.step import run_step, trace_step
from tuneplan.profiling.subject import Subject

STEP = Settings(micro_batch_size=2, seq_len=256, dtype="fp32", gradient_checkpointing="off", attention="eager")
ROUNDS = 5


def test_overhead(benchmark: Any) -> None:
    """Seconds of two tracked steps; `overhead` in the extra info is their ratio to two steps alone, less one."""
    built = build(Subject("small", small_models.config("llama"), parse("lora"), settings=STEP), "eager", "cpu")

    def alone() -> float:
        start = time.perf_counter()
        for _ in range(2):
            run_step(built, STEP, lambda name: None, nullcontext, 1, [], None)
        return time.perf_counter() - start

    alone()
    plain = sorted(alone() for _ in range(ROUNDS))[ROUNDS // 2]
    tracked = benchmark.pedantic(trace_step, (built, STEP), rounds=ROUNDS)
    births = sum(born for born, _ in tracked.timeline.log)
    overhead = benchmark.stats.stats.median / plain - 1
    benchmark.extra_info |= {"plain_seconds": plain, "overhead": round(overhead, 2), "births": births}
