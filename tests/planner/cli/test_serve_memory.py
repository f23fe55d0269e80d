"""`plan serve-memory`: the promised JSON, figures that agree, and refusals."""

import json
from typing import Any

import pytest
from refusals import refuse

ARGUMENTS = ("serve-memory", "--model", "8b", "--gpu", "a100-80g")


def test_promised_keys(plan: Any) -> None:
    """The keys of the contract, and components that sum to the device's bytes."""
    outcome = plan(*ARGUMENTS, "--json")
    body = outcome.json()
    assert (0, "") == (outcome.code, outcome.err)
    assert 1 == body["schema_version"]
    promised = ("kv_bytes_per_token", "kv_cache_bytes", "kv_tokens", "concurrent_requests", "components", "peak")
    assert all(key in body for key in promised)
    assert 131072 == body["kv_bytes_per_token"]
    assert body["peak"]["device_bytes"] == sum(body["components"].values())
    assert body["kv_tokens"] == body["kv_cache_bytes"] // (16 * 131072) * 16
    assert body["concurrent_requests"] == body["lengths"][0]["concurrent_requests"]
    assert body["concurrent_requests"] == body["kv_cache_bytes"] // (1280 * 131072)


def test_text_and_json_agree(plan: Any) -> None:
    """The tokens of the report are those of the JSON."""
    body = plan(*ARGUMENTS, "--json").json()
    assert f"{body['kv_tokens']:,} tokens" in plan(*ARGUMENTS).out


def test_adapters(plan: Any) -> None:
    """Separate adapters take their bytes from the cache, merged ones nothing."""
    none = plan(*ARGUMENTS, "--json").json()
    separate = plan(*ARGUMENTS, "--adapter", "lora(r=16)", "--adapters", "10", "--host-memory", "64GiB", "--json").json()
    merged = plan(*ARGUMENTS, "--adapter", "lora(r=16)", "--merged", "--json").json()
    each = separate["adapters"]["bytes_each"]
    assert 10 * each == none["kv_cache_bytes"] - separate["kv_cache_bytes"]
    assert none["kv_cache_bytes"] == merged["kv_cache_bytes"]
    assert 64 * 2**30 // each == separate["adapters"]["host_adapters"]
    assert {"merged", "separate"} == {choice["adapters"] for choice in separate["choices"]}


def test_the_study_s_count_and_offsite_tuning(plan: Any) -> None:
    """20 full 7B models against the 70B and its adapters; the emulator's layers."""
    body = plan(
        *("serve-memory", "--model", "70b", "--gpu", "a100-80g", "--tensor-parallel", "4", "--adapter", "lora(r=8)"),
        *("--against", "7b", "--emulator-layers", "40", "--json"),
    ).json()
    assert 635 == body["adapters"]["storage"]["adapters_in_the_same_space"]
    assert (40, 80) == (body["offsite"]["kept_layers"], 80)


def test_models_that_are_known_by_size(plan: Any, write_config: Any) -> None:
    """An architecture without an op list is served by the size of its weights: memory, but no time."""
    config = write_config(model_type="deepseek_v9", kv_lora_rank=512, qk_rope_head_dim=64)
    refuse(plan("serve-memory", "--model", config, "--gpu", "h200"), "--weights-size")
    body = plan("serve-memory", "--model", config, "--gpu", "h200", "--weights-size", "60GiB", "--json").json()
    assert {"latent": 2} == body["layers"]
    assert body["lengths"][0]["tokens_per_second"] is None
    assert any("no time" in warning for warning in body["warnings"])


def test_what_does_not_fit_is_an_honest_no(plan: Any) -> None:
    """A 70B model on one card: exit code 1, and by how much it is short."""
    outcome = plan("serve-memory", "--model", "70b", "--gpu", "a100-80g", "--json")
    body = outcome.json()
    assert (1, False, 0) == (outcome.code, body["fits"], body["kv_tokens"])
    assert body["peak"]["short_by_bytes"] > 0
    text = plan("serve-memory", "--model", "70b", "--gpu", "a100-80g")
    assert (1, True) == (text.code, "short by" in text.out)


@pytest.mark.parametrize("weights", ["bf16", "fp16", "fp8", "int8", "nf4", "nf4-double", "gptq", "awq"])
@pytest.mark.parametrize("cache", ["bf16", "fp8", "int8", "int4"])
def test_every_format(plan: Any, weights: str, cache: str) -> None:
    """Every pair of formats gives an answer that prints."""
    outcome = plan("serve-memory", "--model", "7b", "--gpu", "l40s", "--weights", weights, "--kv-dtype", cache)
    assert (0, "") == (outcome.code, outcome.err)


@pytest.mark.parametrize("gpu", ["t4", "mi300x", "a4000", "rtx-4090", "p4de.24xlarge", "v100-32g"])
def test_cards_of_every_kind(plan: Any, gpu: str) -> None:
    """Old, AMD, without a rate, consumer and whole instances."""
    outcome = plan("serve-memory", "--model", "qwen2.5-1.5b", "--gpu", gpu, "--json")
    assert 0 == outcome.code
    assert outcome.json()["kv_tokens"] > 0


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ((), ("--gpu",)),
        (("--gpu", "a100-80"), ("a100-80g",)),
        (("--gpu", "any"), ("names", "cards")),
        (("--gpu", "t4", "--gpu-memory", "24GiB"), ("both",)),
        (("--gpu-memory", "24"), ("unit",)),
        (("--gpu", "t4", "--weights", "nf5"), ("nf4",)),
        (("--gpu", "t4", "--kv-dtype", "fp6"), ("fp8",)),
        (("--gpu", "t4", "--utilisation", "0"), ("utilisation",)),
        (("--gpu", "t4", "--utilisation", "nan"), ("utilisation",)),
        (("--gpu", "t4", "--tensor-parallel", "0"), ("tensor-parallel",)),
        (("--gpu", "t4", "--tensor-parallel", "3"), ("8 key/value heads", "divisor")),
        (("--gpu", "g5.xlarge", "--tensor-parallel", "2"), ("has 1 GPUs",)),
        (("--gpu", "t4", "--prompt-tokens", "x"), ("list of lengths",)),
        (("--gpu", "t4", "--prompt-tokens", ",".join(map(str, range(1, 30)))), ("at most 20",)),
        (("--gpu", "t4", "--prompt-tokens", "0"), ("prompt-tokens 0",)),
        (("--gpu", "t4", "--output-tokens", "-1"), ("output-tokens -1",)),
        (("--gpu", "t4", "--adapters", "3"), ("of which kind",)),
        (("--gpu", "t4", "--adapter", "lora", "--adapters", "3", "--merged"), ("cannot share",)),
        (("--gpu", "t4", "--merged"), ("what is folded in",)),
        (("--gpu", "t4", "--adapter", "full"), ("no adapter",)),
        (("--gpu", "t4", "--adapter", "lorra"), ("lora",)),
        (("--gpu", "t4", "--adapters", "-1"), ("adapters -1",)),
        (("--gpu", "t4", "--emulator-layers", "99"), ("do not fit",)),
        (("--gpu", "t4", "--full-copies", "0"), ("full-copies 0",)),
        (("--gpu", "t4", "--weights-size", "4GiB", "--adapter", "lora"), ("leave out --adapter",)),
        (("--gpu", "t4", "--host-memory", "much"), ("size",)),
        (("--gpu", "t4", "--block-size", "0"), ("block-size 0",)),
    ],
)
def test_refusals(plan: Any, options: tuple[str, ...], parts: tuple[str, ...]) -> None:
    """What was given, why it cannot be, what to do, in one line."""
    refuse(plan("serve-memory", "--model", "8b", *options), *parts)


def test_no_model(plan: Any) -> None:
    """An empty name is told what to write; a missing one too."""
    refuse(plan("serve-memory", "--model", " ", "--gpu", "t4"), "--model is empty")
    refuse(plan("serve-memory", "--gpu", "t4"), "--model")


def test_json_is_strict(plan: Any) -> None:
    """No NaN, and the request with its defaults."""
    text = plan(*ARGUMENTS, "--json").out
    assert json.loads(text)["request"]["max_num_seqs"] == 256
