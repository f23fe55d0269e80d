"""`--dataset` and `--lengths` on the command line: memory of the longest batch, time of the mean one, epochs."""

import json
from pathlib import Path
from typing import Any

import pytest

COMMON = ("--model", "llama-3.2-1b", "--method", "lora")
ESTIMATE = ("estimate", *COMMON, "--gpu", "a100-80g", "--micro-batch-size", "4", "--seq-len", "1024")


@pytest.fixture
def data(tmp_path: Path) -> str:
    """A hundred sequences of 100 tokens and twenty of 800."""
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"length": n}) for n in [100] * 100 + [800] * 20))
    return str(path)


def test_an_estimate_of_data(plan: Any, data: str) -> None:
    """Memory is that of 4 x 800 padded tokens; an epoch is its updates at the mean length's time."""
    body = plan(*ESTIMATE, "--dataset", data, "--json").json()
    longest = plan("estimate", *COMMON, "--gpu", "a100-80g", "--micro-batch-size", "4", "--seq-len", "800", "--padded", "--json")
    found = body["data"]

    assert longest.json()["peak"] == body["peak"]
    assert (120, 26000, 800, 30) == (found["sequences"], found["tokens"], found["longest_length"], found["updates"])
    assert found["mean_step_seconds"] < body["step_seconds"]
    assert found["epoch_hours"] == pytest.approx(30 * found["mean_step_seconds"] / 3600)
    assert {"p50": 100, "p90": 800, "p99": 800, "p100": 800} == found["percentiles"]


def test_ways_of_batching_are_told_apart(plan: Any, data: str) -> None:
    """Packing takes the fewest updates, padding to the full length the most time."""
    hours = {}
    for words in ((), ("--packing",), ("--group-by-length",), ("--padding", "max"), ("--padding", "none")):
        found = plan(*ESTIMATE, "--attention", "flash", "--dataset", data, *words, "--json").json()["data"]
        hours[words] = (found["rows"], found["padding_share"])
    assert hours[("--packing",)][0] < 120
    assert 0 == hours[("--padding", "none")][1] < hours[("--group-by-length",)][1] < hours[()][1] < hours[("--padding", "max")][1]


def test_the_report_says_what_was_assumed(plan: Any, tmp_path: Path) -> None:
    """Text without a tokenizer, and sequences end to end under sdpa."""
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"text": "a" * 4000}))
    out = plan(*ESTIMATE, "--dataset", str(path), "--packing").out
    assert "4 characters a token, assumed" in out
    assert "sequences lie end to end" in out


def test_a_plan_for_epochs_of_data(plan: Any, data: str) -> None:
    """Tokens and hours follow the data: three epochs take three times one, and padding is paid for."""
    asked = (*COMMON, "--gpu", "a100-80g", "--gpus", "1", "--global-batch-size", "4", "--micro-batch-size", "4")
    one, three, long = (
        plan(*asked, *words, "--json").json()["recommended"]
        for words in (
            ("--dataset", data, "--seq-len", "1024"),
            ("--dataset", data, "--seq-len", "1024", "--epochs", "3"),
            ("--samples", "120", "--seq-len", "800"),
        )
    )
    assert three["hours"] == pytest.approx(3 * one["hours"], rel=0.02)  # saving a checkpoint at the end is once
    assert one["hours"] < long["hours"]


def test_a_distribution_stands_for_samples(plan: Any) -> None:
    """`--samples` says how many sequences it stands for."""
    asked = (*COMMON, "--gpu", "a100-80g", "--gpus", "1", "--lengths", "constant(tokens=512)")
    few, many = (plan(*asked, "--samples", n, "--json").json()["recommended"]["hours"] for n in ("64k", "128k"))
    assert many == pytest.approx(2 * few, rel=0.01)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--packing",), "--packing is about data"),
        (("--padding", "max"), "--padding is about data"),
        (("--lengths", "magic(mean=1)"), "Unknown distribution 'magic'"),
        (("--lengths", "gone"), "neither a file nor a distribution"),
        (("--dataset", "gone"), "does not exist"),
        (("--dataset", "gone", "--lengths", "constant(tokens=5)"), "give one of them"),
        (("--lengths", "constant(tokens=5)", "--tokenizer", "x"), "is for --dataset"),
        (("--lengths", "constant(tokens=5)", "--packing", "--padding", "max"), "leave --padding out"),
        (("--lengths", "constant(tokens=5)", "--packing-strategy", "bfd"), "add --packing"),
        (("--lengths", "constant(tokens=5)", "--batch-lengths", "5,6"), "both say how long batches are"),
        (("--lengths", "constant(tokens=5)", "--sweep", "rank=1,2"), "leave one of them out"),
    ],
)
def test_words_that_cannot_be(plan: Any, words: tuple[str, ...], message: str) -> None:
    """Exit code 2 and the way out, for data that are not there or contradict."""
    outcome = plan(*ESTIMATE, *words)
    assert (2, "") == (outcome.code, outcome.out)
    assert message in outcome.err
