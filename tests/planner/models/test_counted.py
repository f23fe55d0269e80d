"""Weights by name and shape of published configs against transformers on the meta device, where the configs are at hand."""

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.counted import LAYERS, WHOLE, parameters, remark, weight_shapes
from tuneplan.planner.models.counted_images import IMAGES
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import BESIDE_TOWERS, as_known, read_spec
from tuneplan.planner.training.settings import Settings

CONFIGS = Path(__file__).parents[4] / "shared" / "data" / "model_configs"
PUBLISHED = sorted(path.stem for path in CONFIGS.glob("*.json"))
NOT_IN_TRANSFORMERS = {"kimi_k3", "nemotron-nas"}
"""Held against the checkpoint in test_counted_kimi.py, and against Llama's layers in families/test_nemotron_nas.py."""
PASSED_OVER = {"step3p7"}
"""Whose flat config transformers would not read: see test_counted_step.py."""
TOTALS = {
    "nvidia--Llama-3_3-Nemotron-Super-49B-v1": 49_867_145_216,
    "moonshotai--Kimi-K2-Instruct": 1_026_408_209_408,
    "XiaomiMiMo--MiMo-7B-Base": 7_622_619_136,
    "MiniMaxAI--MiniMax-M3": 426_174_565_632,
    "moonshotai--Kimi-K3": 2_779_931_837_184,
}
"""Of models whose own code transformers does not have: what the same shape has there, or Llama's layers put together, or the
total that the headers of the checkpoint's own files give (Kimi K3)."""


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
    config = dict(as_known(ConfigReader(config, name)).mapping)
    if config["model_type"] in NOT_IN_TRANSFORMERS | PASSED_OVER:
        pytest.skip(f"transformers builds no text model of {config['model_type']}")
    from tuneplan.profiling.image_batches import READ_BOTH

    task = "image-text-to-text" if config["model_type"] in (*IMAGES, *READ_BOTH) else "causal-lm"
    model = transformers_model(config, task, "eager", torch.bfloat16, "meta")
    assert {key: tuple(parameter.shape) for key, parameter in model.named_parameters()} == ours(config)


@pytest.mark.parametrize("name", [name for name in TOTALS if name in PUBLISHED])
def test_totals(name: str) -> None:
    """Parameters of models that transformers has under another name, or not at all."""
    assert TOTALS[name] == sum(prod(shape) for shape in ours(config_of(name)).values())


@pytest.mark.traced
def test_sizes_that_transformers_would_pass_over() -> None:
    """A flat config of a model whose text part is a section is refused, not built at the section's defaults."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tuneplan.profiling.build import transformers_model

    config = {"model_type": "step3p7", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100}
    with pytest.raises(InputError, match="reads sizes from text_config, which the config does not have, so that hidden_size 64"):
        transformers_model(config, "image-text-to-text", "eager", torch.bfloat16, "meta")


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

    assert not {*LAYERS, *WHOLE} & {model_type for types in FAMILIES.values() for model_type in types}
    assert parameters(ConfigReader({"model_type": "llama"}, "config.json")) is None
    assert "" == remark(ConfigReader({"model_type": "llama"}, "config.json"))
