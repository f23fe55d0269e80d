"""`plan explain`: each figure's formula, numbers and source."""

from typing import Any

import pytest

from tuneplan.planner.report.explain import EXPLAINERS
from tuneplan.planner.units import format_gib

ONE = ("--model", "7b", "--method", "lora", "--micro-batch-size", "2", "--seq-len", "512")


@pytest.mark.parametrize("figure", list(EXPLAINERS))
def test_each_figure_has_formula_numbers_and_source(plan: Any, figure: str) -> None:
    """A figure is explained in text and JSON: formula, at least one number, source, and how far it can be trusted."""
    result = plan("explain", figure, *ONE)
    assert (0, "") == (result.code, result.err)
    document = plan("explain", figure, *ONE, "--json").json()
    assert 1 == document["schema_version"]
    [explanation] = document["explanations"]
    assert figure == explanation["figure"]
    assert explanation["basis"] in ("counted", "modelled", "calibrated")
    assert explanation["numbers"]
    for text in (explanation["formula"], explanation["source"], explanation["value"], *explanation["numbers"]):
        assert text
        assert text in result.out


def test_all_is_every_figure(plan: Any) -> None:
    """`explain all` is all of them, in one document."""
    document = plan("explain", "all", *ONE, "--json").json()
    assert list(EXPLAINERS) == [explanation["figure"] for explanation in document["explanations"]]


def test_values_are_those_of_the_estimate(plan: Any) -> None:
    """What is explained is the figure that `plan estimate` prints."""
    estimate = plan("estimate", *ONE, "--json").json()
    explained = {e["figure"]: e["value"] for e in plan("explain", "all", *ONE, "--json").json()["explanations"]}
    assert format_gib(estimate["peak"]["allocated_bytes"]) == explained["peak"]
    assert format_gib(estimate["peak"]["reserved_bytes"]) == explained["reserved"]
    assert format_gib(estimate["checkpoint_bytes"]) == explained["checkpoint"]
    for name in ("weights", "optimizer_states", "activations", "logits", "temporary", "runtime"):
        assert format_gib(estimate["components"][name]) == explained[name]


@pytest.mark.parametrize("figure", ["weights", "optimizer_states"])
def test_values_are_those_of_a_rank(plan: Any, figure: str) -> None:
    """Where model states are split over GPUs, the explained figure is one rank's, as in the estimate."""
    sharded = ("--model", "7b", "--method", "full", "--zero-stage", "3", "--data-parallel", "8")
    estimate = plan("estimate", *sharded, "--json").json()
    [explanation] = plan("explain", figure, *sharded, "--json").json()["explanations"]
    assert format_gib(estimate["components"][figure]) == explanation["value"]
