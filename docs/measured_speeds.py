"""Write hardware_profiles/speeds: measured times of matrix products and collectives, from NVIDIA's aiconfigurator.

    pip download --no-deps aiconfigurator-core==0.12.0 && unzip aiconfigurator_core-*.whl -d WHEEL     (82 MB, Apache-2.0)
    pip install pandas pyarrow
    PYTHONPATH=src python docs/measured_speeds.py WHEEL

Products: `torch.nn.functional.linear` in bf16 as the collectors of three inference servers timed it; a cell of the table is the
median of those that have it. Collectives: nccl-tests over the cards of one machine, from the newest NCCL that has all of them.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from tuneplan.hardware_profiles.speed_tables import COLLECTIVES, FOLDER

CARDS = {
    "a100_sxm": "a100-80g",
    "h100_sxm": "h100-80g",
    "h200_sxm": "h200",
    "b200_sxm": "b200",
    "b300_sxm": "b300",
    "l40s": "l40s",
    "rtx_pro_6000_server": "rtx-pro-6000",
}
ROWS = (1, 4, 16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
WIDTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536)
INNER = WIDTHS[:-1]
SMALLEST_MESSAGE = 2**16
BYTES_OF_HALF = 2
SOURCE = "ai-dynamo/aiconfigurator, Apache-2.0, Copyright NVIDIA CORPORATION & AFFILIATES; systems/data of aiconfigurator-core {}"


def products(folder: Path) -> dict[str, Any]:
    """Microseconds by rows, columns and summed dimension."""
    files = sorted(folder.glob("gemm/*/*/gemm_perf.parquet"))
    tables = [pd.read_parquet(file) for file in files]
    every = pd.concat([table[table.gemm_dtype == "bfloat16"] for table in tables])
    times = every.groupby(["m", "n", "k"]).latency.median().to_dict()
    cells = [[[times[m, n, k] for k in INNER] for n in WIDTHS] for m in ROWS]
    return {
        "rows": list(ROWS),
        "columns": list(WIDTHS),
        "inner": list(INNER),
        "microseconds": [[[round(1e3 * t, 2) for t in line] for line in sheet] for sheet in cells],
        "collected": [f"{file.parent.parent.name} {file.parent.name}" for file in files],
    }


def collectives(folder: Path) -> dict[str, Any] | None:
    """Microseconds by operation and number of cards over the size of the whole message."""
    for file in sorted(folder.glob("comm/nccl/*/nccl_perf.parquet"), key=lambda f: [int(x) for x in f.parent.name.split(".")])[
        ::-1
    ]:
        table = pd.read_parquet(file)
        table = table[(table.nccl_dtype == "half") & (table.message_size * BYTES_OF_HALF >= SMALLEST_MESSAGE)]
        if not set(COLLECTIVES) <= set(table.op_name):
            continue
        sizes = sorted({int(size) for size in table.message_size})[::-3][::-1]
        ranks = sorted({int(r) for r in table.num_gpus})
        times = table.groupby(["op_name", "num_gpus", "message_size"]).latency.median().to_dict()
        return {
            "ranks": ranks,
            "message_bytes": [BYTES_OF_HALF * size for size in sizes],
            "microseconds": {op: [[round(1e3 * times[op, r, size], 1) for size in sizes] for r in ranks] for op in COLLECTIVES},
            "collected": [f"NCCL {file.parent.name}"],
        }
    return None


def written(value: Any, depth: int = 0) -> str:
    """JSON with the innermost lists on one line each."""
    pad = " " * (depth + 1)
    if isinstance(value, dict):
        inner = ",\n".join(f"{pad}{json.dumps(key)}: {written(v, depth + 1)}" for key, v in value.items())
        return "{\n" + inner + "\n" + " " * depth + "}"
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "[\n" + ",\n".join(pad + written(v, depth + 1) for v in value) + "\n" + " " * depth + "]"
    return json.dumps(value)


def main(wheel: Path) -> None:
    """Write a file for each card."""
    version = next(wheel.glob("aiconfigurator_core-*.dist-info")).name.split("-")[1].removesuffix(".dist")
    for name, gpu in CARDS.items():
        folder = wheel / "aiconfigurator_core" / "systems" / "data" / name
        found: dict[str, Any] = {"gpu": gpu, "source": SOURCE.format(version), "products": products(folder)}
        sent = collectives(folder)
        if sent is not None:
            found["collectives"] = sent
        (FOLDER / f"{gpu}.json").write_text(written(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
