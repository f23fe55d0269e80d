"""What switches save, as `plan` and `plan estimate` show it."""

from typing import Any


def test_savings_are_listed(plan: Any) -> None:
    """Every switch that changes something is in the report, with the sign of the change."""
    arguments = ("estimate", "--model", "7b", "--micro-batch-size", "8", "--seq-len", "512", "--gpu", "a100-80g")
    text = " ".join(plan(*arguments).out.split())
    for saving in plan(*arguments, "--json").json()["savings"]:
        if abs(saving["saved_bytes"]) > 2**20:
            assert saving["change"].split(" (")[0] in text
            assert ("-" if saving["saved_bytes"] > 0 else "+") + f"{abs(saving['saved_bytes']) / 2**30:.2f} GiB" in text


def test_the_recommended_plan_comes_with_its_best_switches(plan: Any) -> None:
    """JSON has every switch of the recommended plan; the report shows at most three, that gain."""
    arguments = ("--model", "7b", "--gpu", "a100-80g", "--gpus", "1", "--method", "lora")
    switches = plan(*arguments, "--json").json()["savings"]
    assert len(switches) > 3
    text = plan(*arguments).out
    shown = [s["change"] for s in switches if s["change"].split(" (")[0] in text]
    assert 1 <= len(shown) <= 3
    assert all(s["gain"] > 0 and s["fits"] for s in switches if s["change"] in shown)


def test_no_plan_has_no_savings(plan: Any) -> None:
    """Where nothing fits there is nothing to save on."""
    assert [] == plan("--model", "70b", "--gpu", "a100-80g", "--method", "full", "--gpus", "1", "--json").json()["savings"]
