"""Weights of Step 3.7's text model from a flat config, against transformers' own class built from the same sizes."""

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

from tuneplan.planner.errors import InputError, NotModelledError
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.counted import parameters, remark, weight_shapes
from tuneplan.planner.models.registry import read_spec

PUBLISHED = Path(__file__).parents[4] / "shared" / "data" / "model_configs" / "stepfun-ai--Step-3.7-Flash.json"
TINY: dict[str, Any] = {
    "model_type": "step3p7",
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 100,
    "intermediate_size": 48,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "first_k_dense_replace": 1,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "share_expert_dim": 40,
    "n_shared_experts": 1,
    "num_nextn_predict_layers": 3,
}


def built(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """What transformers builds of the text model, with the head that it has in the whole model."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.step3p7 import Step3p7TextConfig, Step3p7TextModel

    rest = {key: value for key, value in config.items() if key not in ("model_type", "architectures", "torch_dtype")}
    depth, dense = rest["num_hidden_layers"], rest.pop("first_k_dense_replace")
    kinds = ["dense" if index < dense else "sparse" for index in range(depth)]
    text = Step3p7TextConfig(**{**rest, "n_routed_experts": rest.pop("num_experts"), "mlp_layer_types": kinds})
    with torch.device("meta"):
        model = Step3p7TextModel(text)
    found = {f"model.language_model.{name}": tuple(p.shape) for name, p in model.named_parameters()}
    return {**found, "lm_head.weight": (text.vocab_size, text.hidden_size)}


@pytest.mark.traced
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_sliding_attention_heads": 6},
        {"attention_other_setting": {"attention_type": "sliding_attention", "num_attention_heads": 6}},
    ],
)
def test_a_flat_config(changes: dict[str, Any]) -> None:
    """Each weight that transformers builds from these sizes has our name and shape."""
    config = {**TINY, **changes}
    assert built(config) == weight_shapes(ConfigReader(config, "config.json"))


@pytest.mark.traced
@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published config is not at hand")
def test_the_published_config() -> None:
    """So does each of the published flat config."""
    config = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    ours = weight_shapes(ConfigReader(config, "config.json"))
    assert built(config) == ours
    assert ours is not None
    assert 195_844_496_640 == sum(prod(shape) for shape in ours.values())


def test_the_refusal_says_what_was_assumed() -> None:
    """How many heads layers with a window have is open in the file, and the count says how it was read."""
    with pytest.raises(
        NotModelledError, match=r"parameters, which it does know: its text model.*read with 4 heads as the others"
    ):
        read_spec("x", ConfigReader(TINY, "config.json"))
    told = ConfigReader({**TINY, "num_sliding_attention_heads": 4}, "config.json")
    assert "its text model, as the keys at the top level have it" == remark(told)
    assert parameters(ConfigReader(TINY, "config.json")) == parameters(told)


@pytest.mark.parametrize("changes", [{"text_config": {}}, {"mlp_bias": True}, {"n_shared_experts": 2}])
def test_configs_that_are_not_counted(changes: dict[str, Any]) -> None:
    """A config with parts is traced whole; of others than the flat config's kind nothing is said."""
    assert parameters(ConfigReader({**TINY, **changes}, "config.json")) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention"]}, "'layer_types' must have an entry for each layer"),
        ({"num_experts": None}, "the key 'n_routed_experts' is missing"),
        ({"attention_other_setting": 3}, "'attention_other_setting' is 3, but must be an object"),
        ({"moe_layers_enum": "1,2"}, "'moe_layers_enum' beside sizes at the top level is not known"),
    ],
)
def test_broken_configs(changes: dict[str, Any], message: str) -> None:
    """The key is named."""
    with pytest.raises(InputError, match=message):
        parameters(ConfigReader({**TINY, **changes}, "config.json"))
