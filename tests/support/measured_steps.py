"""Results of measured steps, as `plan profile` and the campaign write them, of a card whose constants are known."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuneplan.hardware_profiles.calibrations import Calibration
from tuneplan.hardware_profiles.loader import find_gpu
from tuneplan.planner.estimate import estimate
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.request import Request
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.units import MIB

CARD = find_gpu("a100-80g")
TRUTH = {"matmul_share": 0.55, "memory_share": 0.7, "host_forward_seconds": 3e-5, "host_backward_seconds": 1.5e-5}
RUNTIME = 900 * MIB
CASES = [
    (model, method, batch, length)
    for model, batch, length in (("qwen2.5-0.5b", 1, 64), ("qwen2.5-0.5b", 4, 2048), ("llama-3.2-1b", 8, 1024))
    for method in ("full", "lora", "qlora", "ia3")
]


def documents() -> list[dict[str, Any]]:
    """Results as `plan profile` writes them, of a card whose constants are TRUTH."""
    card = replace(CARD, calibration=Calibration(CARD.id, TRUTH))
    found = []
    for model, method, batch, length in CASES:
        spec = read_spec(*load(model))
        settings = Settings(micro_batch_size=batch, seq_len=length, gradient_checkpointing="off")
        seen = estimate(Request(spec, parse(method), settings, OPTIMIZERS["adamw"], gpu=card), advice=False)
        assert seen.time is not None
        origin = {"device": {"name": "A100"}, "driver": "570", "date": "2026-11-20T10:00:00", "libraries": {"torch": "2.13"}}
        found.append(
            {
                "source": "measured",
                "request": seen.request.to_json(),
                "peak": {"reserved_bytes": seen.reserved_bytes, "device_bytes": seen.reserved_bytes + RUNTIME},
                "step_seconds": seen.time.seconds,
                "failure": None,
                "provenance": origin,
            }
        )
    return found


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> str:
    """Lines of a campaign."""
    path = folder / "rows.jsonl"
    lines = [json.dumps({"measured": row, "provenance": row["provenance"]}) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)
