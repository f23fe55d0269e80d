"""`plan bench` at the command line."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tuneplan.kernels.bench import ceilings as limits
from tuneplan.planner.cli import extras
from tuneplan.planner.errors import InputError
from tuneplan.planner.report.bench_document import BenchDocument, json_schema

DOCS = Path(__file__).parents[3] / "docs"
SMALL = ("--kernel", "dequantize_4bit", "--shapes", "64x128", "--device", "cpu", "--rounds", "2", "--implementations")


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings that are given: a test measures nothing for long."""
    monkeypatch.setattr(limits, "measure", lambda machine, curve=True: limits.Ceilings(1e10, 2**26, 1e11, 1024))


def test_json_document(plan: Any, tmp_path: Path) -> None:
    """It is what the schema says; rows go to the file, and a second call finds them there."""
    out = tmp_path / "rows.jsonl"
    outcome = plan("bench", *SMALL, "tuneplan,unsloth", "--out", str(out), "--json")
    assert 0 == outcome.code, outcome.err
    found = BenchDocument.model_validate(outcome.json())
    assert {"tuneplan": "measured", "unsloth": "not run"} == {row.implementation: row.state for row in found.rows}
    assert found.rows[0].correctness is not None
    assert 0 == found.rows[0].correctness.relative_error
    assert 2 == len([json.loads(line) for line in out.read_text(encoding="utf-8").splitlines() if '"bench"' in line])
    again = plan("bench", *SMALL, "tuneplan,unsloth", "--out", str(out), "--json").json()
    assert (1, []) == (again["done_before"], again["rows"])


def test_report(plan: Any) -> None:
    """Ceilings and a table of each case, on stdout; what the time does not reach is said."""
    outcome = plan("bench", *SMALL, "tuneplan")
    assert 0 == outcome.code
    assert "copy 10.0 GB/s" in outcome.out
    assert "dequantize_4bit 64x128 nf4 nested block 64 bf16" in outcome.out
    late = plan("bench", *SMALL, "tuneplan", "--seconds", "1e-9")
    assert "the time did not reach 1 cases" in late.out


def test_shapes_of_a_model(plan: Any) -> None:
    """Those of its layers, smallest first."""
    found = plan("bench", "--list", "--kernel", "dequantize_4bit", "--model", "7b", "--device", "cpu", "--json").json()
    labels = [label.split()[1] for label in found["kernels"][0]["cases"]]
    assert ["4096x4096", "4096x11008", "11008x4096"] == labels
    text = plan("bench", "--list", "--device", "cpu")
    assert 0 == text.code
    assert "lora_linear" in text.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--kernel", "dequantise_4bit"), "Did you mean 'dequantize_4bit'"),
        (("--implementations", "bitsandbites"), "Did you mean 'bitsandbytes'"),
        (("--shapes", "4096"), "'4096' is not OUTxIN"),
        (("--shapes", "64x64", "--model", "7b"), "both name shapes"),
        (("--tokens", "0"), "'0' is not a number of tokens"),
        (("--tokens", "\u0664"), "is not a number of tokens"),
        (("--device", "tpu"), "unknown device 'tpu'"),
        (("--seconds", "nan"), "--seconds nan is not a time"),
        (("--rounds", "1"), "--rounds 1 is not a number of rounds"),
        (("--out", "/"), "cannot be written"),
        (("--model", "no-such-model"), "Unknown model"),
    ],
)
def test_wrong_input(plan: Any, words: tuple[str, ...], message: str) -> None:
    """One line on stderr, exit code 2, nothing on stdout."""
    device = () if "--device" in words else ("--device", "cpu")
    outcome = plan("bench", *device, *words)
    assert (2, "") == (outcome.code, outcome.out)
    assert message in outcome.err


def test_without_torch() -> None:
    """The message names the extra that brings it."""
    with pytest.raises(InputError, match=r"pip install 'tuneplan\[kernels\]'"), extras.kernels_need("plan bench"):
        raise ImportError("No module named 'torch'", name="torch")


def test_the_published_schema_is_up_to_date() -> None:
    """`python docs/bench_schema.py` writes it again."""
    assert json_schema() == json.loads((DOCS / "schemas" / "bench.json").read_text(encoding="utf-8"))
