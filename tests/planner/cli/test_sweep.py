"""`--sweep` at the command line."""

from pathlib import Path
from typing import Any

import pytest

ESTIMATE = ("estimate", "--model", "qwen2.5-0.5b", "--gpu", "rtx-4090", "--sweep", "seq-len=256..1024")
SEARCH = ("--model", "qwen2.5-0.5b", "--gpu", "l40s", "--gpus", "1", "--method", "lora", "--sweep", "global-batch-size=3,8,16")


def test_estimates(plan: Any) -> None:
    """A row a value, each as the single estimate gives it, and the largest values that fit."""
    found = plan(*ESTIMATE, "--json").json()
    assert [256, 512, 1024] == [point["seq_len"] for point in found["points"]]
    single = plan(*ESTIMATE[:-2], "--seq-len", "512", "--json").json()
    assert single["peak"] == found["points"][1]["peak"]
    assert single["step_seconds"] == found["points"][1]["step_seconds"]
    assert found["limits"]["seq_len"] > 1024
    text = plan(*ESTIMATE).out
    assert f"{found['limits']['seq_len']:,} tokens" in text
    assert "1,024" in text


def test_searches(plan: Any) -> None:
    """The recommended plan at each value, as the single search gives it; a value that cannot be has its reason."""
    found = plan(*SEARCH, "--json").json()
    assert [3, 8, 16] == [point["global_batch_size"] for point in found["points"]]
    single = plan(*SEARCH[:-2], "--global-batch-size", "8", "--json").json()
    single["recommended"].pop("pareto")  # of a list of plans
    assert single["recommended"] == found["points"][1]["recommended"]
    assert "16" in plan(*SEARCH).out


@pytest.mark.parametrize("arguments", [ESTIMATE, SEARCH])
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_plots(plan: Any, tmp_path: Path, arguments: tuple[str, ...], ending: str) -> None:
    """A picture of the kind that the name says."""
    pytest.importorskip("matplotlib")
    path = tmp_path / f"sweep.{ending}"
    assert 0 == plan(*arguments, "--plot", str(path)).code
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "7b", "--gpu", "l4", "--plot", "x.png"), "--plot draws a sweep"),
        ((*ESTIMATE, "--plot", "x.pdf"), "no kind of picture"),
        ((*ESTIMATE[:-1], "seq-len=9..1"), "goes nowhere"),
        ((*ESTIMATE[:-1], "gpus=1,2"), "Unknown option to sweep 'gpus'"),
        ((*SEARCH[:-1], "global-batch-size=0"), "not a batch"),
    ],
)
def test_bad_input(plan: Any, arguments: tuple[str, ...], message: str) -> None:
    """Exit code 2 and one line."""
    outcome = plan(*arguments)
    assert (2, "") == (outcome.code, outcome.out)
    assert message in outcome.err
