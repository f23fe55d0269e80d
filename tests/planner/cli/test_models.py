"""`plan models`: the catalog."""

from typing import Any

import pytest

from tuneplan.planner.models.lookup import entries


def test_list_as_text_and_json(plan: Any) -> None:
    """Every model of the catalog is listed, with its parameters, in both forms."""
    listed = plan("models", "--json").json()
    assert (1, len(entries())) == (listed["schema_version"], len(listed["models"]))
    text = plan("models").out
    for model in listed["models"]:
        assert model["parameters"] > 0
        assert model["id"] in text


@pytest.mark.parametrize(
    ("name", "hub_id"),
    [
        ("7b", "meta-llama/Llama-2-7b-hf"),
        ("13b", "meta-llama/Llama-2-13b-hf"),
        ("70b", "meta-llama/Llama-2-70b-hf"),
        ("8b", "meta-llama/Meta-Llama-3.1-8B"),
        ("405b", "meta-llama/Meta-Llama-3.1-405B"),
        ("META-LLAMA/llama-2-7B-HF", "meta-llama/Llama-2-7b-hf"),
    ],
)
def test_show_by_alias_and_id(plan: Any, name: str, hub_id: str) -> None:
    """A size alone means the reference study's Llama 2, 8b and 405b mean Llama 3.1; case does not matter."""
    document = plan("models", "show", name, "--json").json()
    assert hub_id == document["id"]
    result = plan("models", "show", name)
    assert (0, "") == (result.code, result.err)
    assert f"{document['parameters']:,} parameters" in result.out
    assert document["source"] in result.out


def test_counts_agree_with_the_estimate(plan: Any) -> None:
    """The catalog's parameter count is the one that an estimate of full fine-tuning comes to."""
    for name in ("7b", "70b", "8b"):
        total = plan("estimate", "--model", name, "--method", "full", "--json").json()["parameters"]["total"]
        assert plan("models", "show", name, "--json").json()["parameters"] == total
