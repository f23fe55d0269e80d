"""`plan calibrate` and `--calibration` at the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
from measured_steps import documents, write_rows


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A campaign's rows of an A100 whose products reach half of the peak."""
    return write_rows(tmp_path_factory.mktemp("rows"), documents())


def test_from_results_to_estimates(plan: Any, results: str, tmp_path: Path) -> None:
    """The file that is written changes the estimate of its card, in plan and in plan estimate, and is refused for another."""
    out = str(tmp_path / "a100.toml")
    found = plan("calibrate", results, "--gpu", "a100-80g", "--out", out, "--json").json()
    assert found["median_error"]["judged_with"] < found["median_error"]["judged_without"]
    step = ("estimate", "--model", "llama-3.2-1b", "--micro-batch-size", "8", "--gpu", "a100-80g", "--json")
    bare, fitted = plan(*step).json(), plan(*step, "--calibration", out).json()
    assert fitted["step_seconds"] > bare["step_seconds"]
    assert fitted["basis"]["step_seconds"].startswith("calibrated")
    search = ("--model", "llama-3.2-1b", "--gpu", "a100-80g", "--gpus", "1", "--method", "lora", "--json")
    assert plan(*search, "--calibration", out).json()["recommended"]["hours"] > plan(*search).json()["recommended"]["hours"]
    outcome = plan("estimate", "--model", "7b", "--gpu", "l40s", "--calibration", out)
    assert (2, "") == (outcome.code, outcome.out)
    assert "fitted on a100-80g, and the card is l40s" in outcome.err


def test_the_report(plan: Any, results: str) -> None:
    """Every row with and without the constants, and which rows chose them."""
    text = plan("calibrate", results, "--gpu", "a100-80g").out
    rows = json.loads(plan("calibrate", results, "--gpu", "a100-80g", "--json").out)["rows"]
    assert len(rows) == 12
    assert (6, 6) == (sum(line.rstrip().endswith("chose") for line in text.splitlines()), text.count(" judges\n"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("calibrate", "missing.json", "--gpu", "h200"), "Cannot read"),
        (("calibrate", "RESULTS", "--gpu", "h2000"), "Unknown GPU"),
        (("calibrate", "--gpu", "h200"), "RESULT"),
        (("estimate", "--model", "7b", "--calibration", "x.toml"), "name it with --gpu"),
    ],
)
def test_bad_input(plan: Any, results: str, arguments: tuple[str, ...], message: str) -> None:
    """Exit code 2 and one line."""
    outcome = plan(*[results if word == "RESULTS" else word for word in arguments])
    assert (2, "") == (outcome.code, outcome.out)
    assert message in outcome.err
