"""Time of prompts and tokens: limiting cases of the roofline, laws, and one published speed."""

from typing import Any

import pytest

from tuneplan.hardware_profiles.loader import find_gpu
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.serving.kv_cache import CACHE_FORMATS
from tuneplan.planner.serving.read_kv import read_kv
from tuneplan.planner.serving.token_time import Engine, decode_seconds, prefill_seconds, rates_of, throughput
from tuneplan.planner.serving.weight_formats import FORMATS, network_of, served_weights


def engine(model: str = "8b", gpu: str = "a100-80g", weights: str = "bf16", ways: int = 1) -> Engine:
    """A model on a card."""
    name, config = load(model)
    spec: Any = read_spec(name, config)
    card = find_gpu(gpu)
    return Engine(
        served_weights(network_of(spec), FORMATS[weights], ways),
        FORMATS[weights],
        spec.num_hidden_layers,
        spec.hidden_size,
        spec.num_attention_heads * spec.head_dim,
        read_kv(config),
        CACHE_FORMATS["bf16"],
        card,
        ways,
        rates_of(card),
    )


def test_one_sequence_reads_all_weights() -> None:
    """The first token of a batch of one is limited by memory: weights over bandwidth, and the gaps between kernels."""
    one = engine()
    expected = one.weights.read_bytes / one.rates.memory
    assert expected == pytest.approx(decode_seconds(one, 1, 1), rel=0.1)


def test_a_long_prompt_is_limited_by_arithmetic() -> None:
    """2 FLOPs for each weight and token, within the share that attention takes."""
    one = engine()
    expected = 2 * one.weights.linear_parameters * 4096 / one.rates.matmul["bf16"]
    assert expected == pytest.approx(prefill_seconds(one, 4096), rel=0.15)


def test_published_speed_of_decoding() -> None:
    """Llama-3.1-8B in bf16 at batch 1 on an H100, whose weights alone allow 4.8 ms a token, is between that and 9 ms.

    vLLM users report 120 to 150 tokens a second; rows with their own settings were not at hand, so this is a range, not a fit.
    """
    assert 0.0048 < decode_seconds(engine(gpu="h100-80g"), 1, 512) < 0.009


def test_laws() -> None:
    """Longer takes longer, larger batches make more tokens, more GPUs are faster, and 4 bits in a fused product read less."""
    one = engine()
    assert decode_seconds(one, 8, 100) <= decode_seconds(one, 8, 1000) <= decode_seconds(one, 64, 1000)
    speeds = [throughput(one, batch, 500, 200).tokens_per_second for batch in (1, 2, 8, 64, 256)]
    assert sorted(speeds) == speeds
    assert decode_seconds(engine(ways=4), 1, 1000) < decode_seconds(one, 1, 1000)
    assert decode_seconds(engine(weights="awq"), 1, 1000) < decode_seconds(one, 1, 1000)
    assert decode_seconds(engine(weights="nf4-double"), 8, 1000) > decode_seconds(one, 8, 1000)


def test_old_cards_compute_in_fp16() -> None:
    """A T4 has no bf16."""
    assert ["fp16"] == list(rates_of(find_gpu("t4")).matmul)


def test_full_load_is_consistent() -> None:
    """Tokens a second are requests a second times the answer; the time between tokens holds the prefills of the others."""
    loaded = throughput(engine(), 32, 500, 200)
    assert loaded.tokens_per_second == pytest.approx(200 * loaded.requests_per_second)
    assert 32 / loaded.requests_per_second == pytest.approx(200 * loaded.token_seconds)
