"""Write kernels/bench/shapes.json, the weight matrices that kernels are timed on, from the catalog of models.

PYTHONPATH=src python docs/bench_shapes.py
"""

import json
from dataclasses import asdict
from pathlib import Path

from tuneplan.planner.models.linears import linears
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.registry import read_spec

TARGET = Path(__file__).parents[1] / "kernels" / "bench" / "shapes.json"
MODELS = (
    "meta-llama/Llama-2-7b-hf",
    "meta-llama/Llama-2-13b-hf",
    "meta-llama/Llama-2-70b-hf",
    "meta-llama/Llama-3.1-8B",
    "meta-llama/Llama-3.2-1B",
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen2.5-7B",
)


def shapes() -> list[dict[str, object]]:
    """Each model with its linear layers."""
    return [{"model": name, "linears": [asdict(one) for one in linears(read_spec(*load(name)))]} for name in MODELS]


if __name__ == "__main__":
    TARGET.write_text(json.dumps(shapes(), indent=1) + "\n", encoding="utf-8")
