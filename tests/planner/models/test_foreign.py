"""Configs whose `model_type` does not go with their other keys."""

import json
from typing import Any

import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.lookup import CATALOG
from tuneplan.planner.models.registry import read_spec

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def read(**changes: Any) -> Any:
    """The spec of a small Llama with other keys."""
    return read_spec("x", ConfigReader({**LLAMA, **changes}, "config.json"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_local_experts": 8, "kv_lora_rank": 512},
            r"num_local_experts: a mixture of experts; kv_lora_rank: multi-head latent",
        ),
        ({"ssm_state_size": 128}, "ssm_state_size: layers with a state"),
        ({"d_kv": 64, "num_decoder_layers": 6}, "num_decoder_layers, d_kv: an encoder and a decoder"),
    ],
)
def test_keys_of_another_architecture(changes: dict[str, Any], message: str) -> None:
    """They are named, with what they say."""
    with pytest.raises(InputError, match=f"model_type 'llama' has none of what other keys say .{message}"):
        read(**changes)


@pytest.mark.parametrize("changes", [{"num_local_experts": 1}, {"num_experts": None}, {"kv_lora_rank": 0}, {"d_kv": "64"}])
def test_keys_that_say_nothing(changes: dict[str, Any]) -> None:
    """One expert, null, 0, and what is no number are left-overs."""
    assert read() == read(**changes)


def test_code_that_a_config_points_to_is_named_and_not_run() -> None:
    """`auto_map` is passed over, and the note says so."""
    spec = read(auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    assert "auto_map" in spec.note
    assert "never run" in spec.note


def test_the_catalog_has_no_such_config() -> None:
    """Every bundled config goes with its model type."""
    for path in CATALOG.glob("*--*.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        assert path.stem == read_spec(path.stem, ConfigReader(config, path.stem)).id
