"""`--experts` and `--routing`: what they reach, and where they cannot be."""

from typing import Any

import pytest

MIXTURE = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
SHORT = ("--seq-len", "128", "--method", "full")


def test_the_document_has_them(plan: Any, write_config: Any) -> None:
    """As they were used, defaults included; null where the model has no experts."""
    mixture = write_config(name="mixture.json", **MIXTURE)
    given = plan("estimate", "--model", mixture, *SHORT, "--experts", "batched_mm", "--routing", "worst", "--json").json()
    usual = plan("estimate", "--model", mixture, *SHORT, "--json").json()
    dense = plan("estimate", "--model", write_config(), *SHORT, "--json").json()
    found = [[document["request"][key] for key in ("experts", "routing")] for document in (given, usual, dense)]
    assert [["batched_mm", "worst"], ["grouped_mm", "even"], [None, None]] == found
    assert given["peak"]["allocated_bytes"] > usual["peak"]["allocated_bytes"]


def test_explain_takes_them(plan: Any, write_config: Any) -> None:
    """The figure explained is that of the implementation."""
    mixture = write_config(**MIXTURE)
    shown = [plan("explain", "peak", "--model", mixture, *SHORT, "--experts", name).out for name in ("grouped_mm", "batched_mm")]
    assert shown[0] != shown[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--experts", "deepgemm"), "Unknown experts 'deepgemm'"),
        (("--experts", "grouped"), "Unknown experts 'grouped'. Did you mean 'grouped_mm'?"),
        (("--routing", "odd"), "Unknown routing 'odd'"),
    ],
)
def test_words_that_are_not_known(plan: Any, write_config: Any, words: tuple[str, ...], message: str) -> None:
    """One line that names the choices."""
    outcome = plan("estimate", "--model", write_config(**MIXTURE), *SHORT, *words)
    assert (2, "") == (outcome.code, outcome.out)
    assert message in outcome.err


@pytest.mark.parametrize("words", [("--experts", "grouped_mm"), ("--routing", "even")])
def test_a_dense_model_has_no_experts(plan: Any, write_config: Any, words: tuple[str, ...]) -> None:
    """Said at once."""
    outcome = plan("estimate", "--model", write_config(), *SHORT, *words)
    assert 2 == outcome.code
    assert f"{words[0]} is of a mixture of experts" in outcome.err


def test_default_methods_that_cannot_adapt_experts_are_left_out(plan: Any) -> None:
    """DoRA of all linear modules reaches experts and cannot be there; the comparison has the others, and says why."""
    document = plan("compare", "--model", "mixtral-8x7b-v0.1", "--gpu", "h100-80g", "--seq-len", "512", "--json").json()
    assert ["full", "lora", "qlora"] == [row["method"] for row in document["methods"]][:3]
    assert ["dora"] == [row["method"] for row in document["left_out"] if "use_dora" in row["reason"]]


@pytest.mark.traced
@pytest.mark.parametrize(("experts", "routing"), [("batched_mm", "even"), ("eager", "even"), ("eager", "worst")])
def test_trace_runs_the_implementation(plan: Any, write_config: Any, experts: str, routing: str) -> None:
    """The real code with copies of matrices, or with a loop, beside the estimate of the same."""
    pytest.importorskip("torch")
    words = ("--model", write_config(**MIXTURE), *SHORT, "--experts", experts, "--routing", routing, "--verify", "--json")
    document = plan("trace", *words).json()
    assert (experts, routing) == (document["request"]["experts"], document["request"]["routing"])
    assert abs(document["verification"]["allocated"]["percent"]) < 0.1


@pytest.mark.traced
def test_profile_cannot_route(plan: Any, write_config: Any) -> None:
    """A real step routes by its weights."""
    pytest.importorskip("torch")
    outcome = plan("profile", "--model", write_config(**MIXTURE), *SHORT, "--routing", "worst", "--device", "cpu")
    assert 2 == outcome.code
    assert "cannot be profiled" in outcome.err
