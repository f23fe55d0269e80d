"""Layouts on real processes: what each rank's step holds, beside the estimate.

`torchrun --nproc-per-node 2 -m tuneplan.profiling.parallel_cases docs/accuracy/parallel.json` runs the layouts for as many ranks
as torchrun started, with tiny models on CPUs and gloo between them, and writes (or replaces) their rows.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tuneplan.planner.errors import InputError
from tuneplan.planner.memory import StepMemory, step_memory
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import build as build_network
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding
from tuneplan.profiling import attention
from tuneplan.profiling.build import build
from tuneplan.profiling.ranks import Ranks, from_environment, gather, group, spread
from tuneplan.profiling.step import STEP_PHASES, StepTrace, trace_step
from tuneplan.profiling.subject import Subject

TINY: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1378,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 1001,
}
"""A Llama with the proportions of a real one, and dimensions that four ranks do not divide."""


@dataclass(frozen=True)
class Case:
    """One layout of one run."""

    method: str
    sharding: Sharding
    settings: Settings = field(default_factory=lambda: Settings(seq_len=64))
    optimizer: str = "adamw"
    config: Mapping[str, Any] = field(default_factory=lambda: TINY)


def cases(ranks: int) -> list[Case]:
    """What is run on so many processes."""
    layouts = [Sharding(ranks), Sharding(ranks, 2), Sharding(ranks, 3)]
    if ranks > 2:
        layouts.append(Sharding(ranks, 3, shard_group=ranks // 2))
    found = []
    for method in ("full", "lora(r=8,target_modules=all-linear)"):
        for checkpointing in ("off", "non-reentrant"):
            for precision in ("pure", "master-weights"):
                settings = Settings(seq_len=64, gradient_checkpointing=checkpointing, precision=precision)
                found += [Case(method, layout, settings) for layout in layouts if precision == "pure" or layout.zero_stage]
    return found


def estimated(case: Case) -> StepMemory:
    """The ledger's answer for one rank."""
    settings = case.sharding.settings(case.settings)
    spec = read_spec("tiny", ConfigReader(dict(case.config), "tiny"))
    network = build_network(spec, parse(case.method), settings)
    return step_memory(network, settings, OPTIMIZERS[case.optimizer], case.sharding)


def traced(case: Case, ranks: Ranks) -> StepTrace:
    """The real step of this process; its process group must be there."""
    attention.register()
    settings = case.settings
    subject = Subject("tiny", case.config, parse(case.method), settings=settings, optimizer=OPTIMIZERS[case.optimizer])
    built = build(subject, attention.NAMES[settings.attention], "cpu")
    built = spread(built, subject, case.sharding, ranks, torch.device("cpu"))
    return trace_step(built, settings, accumulation=2 if settings.accumulating else 1)


def row(case: Case, ranks: Ranks) -> dict[str, Any]:
    """Estimate and measurement of every rank."""
    trace = traced(case, ranks)
    real = gather(ranks, {name: trace.phases[name].peak_bytes for name in STEP_PHASES})
    phases = {name: int(phase.peak_bytes) for name, phase in estimated(case).phases.items() if name in STEP_PHASES}
    peak, most = max(phases.values()), max(max(figures.values()) for figures in real)
    return {
        "method": case.method,
        "layout": case.sharding.label,
        "ranks": ranks.count,
        "gradient_checkpointing": case.settings.gradient_checkpointing,
        "precision": case.settings.precision,
        "optimizer": case.optimizer,
        "estimated_bytes": phases,
        "measured_bytes": real,
        "peak_error": round(peak / most - 1, 5),
    }


def main(path: str) -> None:
    """Run the cases, and write their rows beside those of other numbers of ranks."""
    ranks = from_environment()
    if ranks.count == 1:
        raise InputError("one process is no layout; start this with torchrun --nproc-per-node 2")
    with group(ranks, torch.device("cpu")):
        rows = [row(case, ranks) for case in cases(ranks.count)]
    if ranks.first:
        file = Path(path)
        kept = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
        rows = [r for r in kept if r["ranks"] != ranks.count] + rows
        text = json.dumps(
            {"schema_version": 1, "torch": torch.__version__, "rows": sorted(rows, key=lambda r: r["ranks"])}, indent=1
        )
        file.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
