"""What is timed: shapes that agree with the catalog, labels that are their case's own."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tuneplan.kernels.bench import traffic
from tuneplan.kernels.bench.cases import Case, cpu_cases, gpu_cases
from tuneplan.kernels.bench.registry import KERNELS, kernel
from tuneplan.kernels.bench.shapes import Shape, all_shapes, models
from tuneplan.kernels.errors import KernelInputError
from tuneplan.planner.models.linears import linears
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.registry import read_spec

FOLDER = Path(__file__).parents[3] / "kernels" / "bench"


def test_shapes_are_the_catalogs() -> None:
    """`python docs/bench_shapes.py` writes the file again."""
    for entry in json.loads((FOLDER / "shapes.json").read_text(encoding="utf-8")):
        found = [
            {"module": one.module, "out_features": one.out_features, "in_features": one.in_features, "count": one.count}
            for one in linears(read_spec(*load(entry["model"])))
        ]
        assert found == entry["linears"], entry["model"]


def test_shapes_of_a_model() -> None:
    """Llama-2-7B has three; none is there twice over all models."""
    assert (Shape(4096, 4096), Shape(4096, 11008), Shape(11008, 4096)) == models()["meta-llama/Llama-2-7b-hf"]
    assert len(all_shapes()) == len(set(all_shapes()))


@pytest.mark.parametrize("text", ["", "4096", "4096x", "-1x4", "4096x4096x2", "axb", "0x4", "9999999x9999999", "1e3x4"])
def test_a_shape_that_is_none(text: str) -> None:
    """The message shows what was given."""
    with pytest.raises(KernelInputError, match="shape"):
        Shape.read(text)
    assert Shape(11008, 4096) == Shape.read(" 11008X4096 ")


@pytest.mark.parametrize("cases", [gpu_cases(), cpu_cases()], ids=["gpu", "cpu"])
def test_labels_tell_cases_apart(cases: list[Case]) -> None:
    """No two cases share one, every kernel has some, and a case comes back from its row."""
    assert len(cases) == len({case.label for case in cases}) == len(set(cases))
    assert set(KERNELS) == {case.kernel for case in cases}
    assert cases == [Case.from_json(json.loads(json.dumps(case.as_json()))) for case in cases]


def test_every_implementation_file_is_a_kernel() -> None:
    """Files named after a kernel are registered, and each kernel is a file of its own."""
    helpers = {"__init__", "torchao", "unsloth"}
    found = {path.stem for path in (FOLDER / "implementations").glob("*.py")} - helpers
    assert set(KERNELS) == found
    with pytest.raises(KernelInputError, match="Did you mean 'dequantize_4bit'"):
        kernel("dequantise_4bit")


def test_minimum_bytes() -> None:
    """2.51587 bytes a weight for NF4 with nested scales to bf16, 2.5625 with flat ones; 3 for LLM.int8, beside its scales."""
    shape = Shape(4096, 4096)
    weights = 4096 * 4096
    assert weights // 2 + weights // 64 + weights // 64 // 256 * 4 + 2 * weights == traffic.dequantized(Case("", shape))
    assert weights // 2 + weights // 64 * 4 + 2 * weights == traffic.dequantized(Case("", shape, nested=False))
    assert 3 * weights + 4 * 4096 == traffic.dequantized(Case("", shape, "int8_rows", blocksize=0))
    assert 2.51587 == pytest.approx(traffic.dequantized(Case("", shape)) / weights, abs=5e-6)  # as printed
    assert 2 * 3 * weights == traffic.product_flops(Case("", shape, tokens=3))
    assert 4 * 8 * weights + 6 * 8 * 16 * 8192 == traffic.trained_flops(Case("", shape, tokens=8, rank=16))
