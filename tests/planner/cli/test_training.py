"""`--training`: what reward, DPO and GRPO add to an estimate, and what is refused."""

from typing import Any

import pytest

SMALL = ("--seq-len", "512", "--micro-batch-size", "4")


def estimate(plan: Any, config: str, *words: str) -> Any:
    """The JSON of an estimate of a small model."""
    outcome = plan("estimate", "--model", config, *SMALL, *words, "--json")
    assert 0 == outcome.code, outcome.err
    return outcome.json()


def test_phases(plan: Any, write_config: Any) -> None:
    """DPO has a reference's forward, GRPO a rollout with a cache; the settled options stand in the request."""
    config = write_config()
    dpo = estimate(plan, config, "--method", "lora", "--training", "dpo")
    grpo = estimate(plan, config, "--method", "lora", "--training", "grpo", "--num-generations", "2")
    sft = estimate(plan, config, "--method", "lora", "--loss", "trl")
    assert ["load", "forward", "backward", "optimizer_step", "save"] == list(sft["phases"])
    assert ["load", "forward", "reference", "backward", "optimizer_step", "save"] == list(dpo["phases"])
    assert ["load", "rollout", "forward", "backward", "optimizer_step", "save"] == list(grpo["phases"])
    assert ("adapters-off", "none") == (dpo["request"]["training"]["reference"], grpo["request"]["training"]["reference"])
    assert dpo["phases"]["forward"]["end_bytes"] == dpo["phases"]["reference"]["end_bytes"]


def test_laws(plan: Any, write_config: Any) -> None:
    """A second model costs its weights, a vLLM engine its share, pairs twice the batch, more completions more cache."""
    config = write_config()
    full = ("--method", "full", "--training", "dpo")
    second = estimate(plan, config, *full)["phases"]
    none = estimate(plan, config, *full, "--reference", "precomputed")["phases"]
    weights = none["load"]["end_bytes"]
    assert second["backward"]["peak_bytes"] - none["backward"]["peak_bytes"] == weights
    grpo = ("--method", "lora", "--training", "grpo", "--num-generations", "2")
    here = estimate(plan, config, *grpo)["phases"]
    beside = estimate(plan, config, *grpo, "--vllm-memory", "1GiB")["phases"]
    assert 2**30 == beside["backward"]["peak_bytes"] - here["backward"]["peak_bytes"]
    more = estimate(plan, config, *grpo, "--gradient-accumulation-steps", "4")["phases"]
    assert more["rollout"]["peak_bytes"] > 2 * here["rollout"]["peak_bytes"]
    pairs = estimate(plan, config, "--method", "lora", "--training", "dpo", "--reference", "precomputed")
    twice = estimate(plan, config, "--method", "lora", "--loss", "trl", "--micro-batch-size", "8")
    gap = abs(pairs["phases"]["backward"]["peak_bytes"] - twice["phases"]["backward"]["peak_bytes"])
    assert gap < 0.01 * twice["phases"]["backward"]["peak_bytes"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--training", "dop"), "'dpo'"),
        (("--training", "dpo", "--reference", "modl"), "'model'"),
        (("--training", "dpo", "--reference", "none"), "--reference"),
        (("--training", "dpo", "--reference", "adapters-off", "--method", "full"), "no adapters"),
        (("--training", "dpo", "--num-generations", "4"), "--num-generations"),
        (("--training", "dpo", "--loss", "liger"), "--loss"),
        (("--training", "dpo", "--completion-length", "512"), "--seq-len"),
        (("--training", "dpo", "--completion-length", "0"), "completion of 0"),
        (("--training", "reward", "--reference", "model"), "--reference"),
        (("--training", "reward", "--completion-length", "9"), "--completion-length"),
        (("--reference", "model"), "--reference"),
        (("--vllm-memory", "1GiB"), "--vllm-memory"),
        (("--training", "grpo", "--vllm-memory", "much"), "much"),
        (("--training", "grpo", "--num-generations", "3"), "num-generations 3"),
        (("--training", "grpo", "--num-generations", "1"), "num-generations 1"),
        (("--training", "grpo", "--completion-length", "600"), "600"),
        (("--training", "grpo", "--reference", "precomputed"), "--reference"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_what_cannot_be(plan: Any, write_config: Any, words: tuple[str, ...], named: str) -> None:
    """Exit code 2 and a message that names the option."""
    outcome = plan("estimate", "--model", write_config(), *SMALL, *words)
    assert (2, "") == (outcome.code, outcome.out)
    assert named in outcome.err


def test_the_search_takes_it(plan: Any, write_config: Any) -> None:
    """`plan` finds plans for DPO; one for supervised fine-tuning needs less."""
    words = (
        "--model",
        write_config(),
        "--gpu-memory",
        "24GiB",
        "--seq-len",
        "512",
        "--method",
        "lora",
        "--global-batch-size",
        "4",
    )
    peaks = [
        plan(*words, *more, "--micro-batch-size", "4", "--no-gradient-checkpointing", "--json").json()["recommended"]["peak"]
        for more in ((), ("--training", "dpo"))
    ]
    assert peaks[0]["allocated_bytes"] < peaks[1]["allocated_bytes"]


@pytest.mark.parametrize("words", [("dpo",), ("grpo", "--num-generations", "4"), ("reward",)], ids=lambda words: words[0])
def test_reserved_is_never_below_allocated(plan: Any, write_config: Any, words: tuple[str, ...]) -> None:
    """An allowance stands in for the replay, which does not know a reference model or a rollout."""
    found = estimate(plan, write_config(), "--method", "lora", "--training", *words)
    assert found["peak"]["reserved_bytes"] > found["peak"]["allocated_bytes"]
    assert "allowance" in found["basis"]["reserved_bytes"]
