"""Weights by name and shape of published configs against transformers on the meta device, where the configs are at hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.counted import LAYERS, parameters, weight_shapes
from tuneplan.planner.models.counted_images import IMAGES
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import BESIDE_TOWERS, read_spec
from tuneplan.planner.training.settings import Settings

CONFIGS = Path(__file__).parents[4] / "shared" / "data" / "model_configs"
PUBLISHED = sorted(path.stem for path in CONFIGS.glob("*.json"))
NOT_IN_TRANSFORMERS = {"kimi_k2", "kimi_k3", "mimo", "minimax_m3", "nemotron-nas"}
WITH_IMAGES = {"step3p7"}
"""Of which we list nothing."""


def config_of(name: str) -> dict[str, Any]:
    """A published config."""
    content: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def ours(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """From the list of weights where there is one, else from the family's ops."""
    reader = ConfigReader(config, "config.json")
    return weight_shapes(reader) or build(read_spec("x", reader), parse("full"), Settings()).shapes()


@pytest.mark.traced
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(name: str) -> None:
    """Each weight that transformers builds has our name and shape."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tuneplan.profiling.build import transformers_model

    config = config_of(name)
    if config["model_type"] in BESIDE_TOWERS:
        config = config["text_config"]
    if config["model_type"] in NOT_IN_TRANSFORMERS | WITH_IMAGES:
        pytest.skip(f"transformers builds no text model of {config['model_type']}")
    from tuneplan.profiling.image_batches import READ_BOTH

    task = "image-text-to-text" if config["model_type"] in (*IMAGES, *READ_BOTH) else "causal-lm"
    model = transformers_model(config, task, "eager", torch.bfloat16, "meta")
    assert {key: tuple(parameter.shape) for key, parameter in model.named_parameters()} == ours(config)


def test_a_list_of_layers_that_is_too_short() -> None:
    """What the config does not say of a layer is an error that names the key."""
    config = {
        "model_type": "mimo_v2_flash",
        "hidden_size": 64,
        "vocab_size": 100,
        "num_hidden_layers": 2,
        "hybrid_layer_pattern": [],
    }
    with pytest.raises(InputError, match="'hybrid_layer_pattern' must have an entry for each layer"):
        weight_shapes(ConfigReader(config, "config.json"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_config": 3}, "'vision_config' is 3, but must be an object"),
        ({"vision_config": {"merge_kernel_size": 3}}, "'merge_kernel_size' must be two numbers of patches"),
        ({"text_config": {"hidden_size": "wide"}}, "'hidden_size' is \"wide\", but must be an integer"),
    ],
)
def test_broken_parts_of_a_model_of_images(changes: dict[str, Any], message: str) -> None:
    """The part and the key are named."""
    text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 100}
    config = {"model_type": "kimi_k25", "text_config": text, "vision_config": {}, **changes}
    with pytest.raises(InputError, match=message):
        weight_shapes(ConfigReader(config, "config.json"))


def test_counted_types_have_no_family() -> None:
    """An architecture is in the list of weights or mirrored by a family, not both; others are in neither."""
    from tuneplan.planner.models.registry import FAMILIES

    assert not {*LAYERS, *IMAGES} & {model_type for types in FAMILIES.values() for model_type in types}
    assert parameters(ConfigReader({"model_type": "llama"}, "config.json")) is None
