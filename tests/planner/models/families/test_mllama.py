"""What is particular to Llama 3.2 Vision: layers that attend to images, text alone that skips them, and refused configs."""

from dataclasses import replace
from typing import Any

import families
import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling import family_matrix, small_models

OFF = Settings(micro_batch_size=2, seq_len=200, gradient_checkpointing="off")


def built(method: str = "full", settings: Settings = OFF, **changes: Any) -> Network:
    """The network of the small model; `vision` and `text` change keys of its parts."""
    config = small_models.config("mllama")
    for part in ("vision", "text"):
        config[f"{part}_config"] |= changes.pop(part, {})
    return build(read_spec("mllama", ConfigReader({**config, **changes}, "mllama")), parse(method), settings)


@pytest.mark.traced
def test_other_kernels() -> None:
    """Eager attention, FlashAttention, and a cache."""
    families.check_kernels("mllama")


@pytest.mark.traced
@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("lora", {"images": 2}),
        ("full(frozen=vision_model)", {}),
        ("full", {"images": 0}),
        ("lora", {"images": 0, "gradient_checkpointing": "non-reentrant"}),
    ],
)
def test_steps(method: str, changes: dict[str, Any]) -> None:
    """Two images; a frozen tower; text alone, which skips the layers that attend to images."""
    settings = replace(OFF, **changes)
    trained, peak = family_matrix.traced(small_models.load("mllama"), method, settings)
    network, memory = family_matrix.estimated(small_models.load("mllama"), method, settings)
    assert trained == network.trainable_parameters
    assert peak == pytest.approx(max(memory.phases[p].peak_bytes for p in family_matrix.STEP_PHASES), rel=0.001)


def test_text_alone_has_all_weights() -> None:
    """Those of skipped layers and of the tower lie there without gradients."""
    alone = built(settings=replace(OFF, images=0))
    assert built().shapes() == alone.shapes()
    idle = {p.name for p in alone.parameters if p.idle}
    assert any(".cross_attn." in name for name in idle)
    assert not any(".self_attn." in name and "language_model" in name for name in idle)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("prompt_tuning", OFF, "peft takes the head for the embedding of prompts"),
        ("prefix_tuning", OFF, "no room for prefixes"),
        ("full", replace(OFF, gradient_checkpointing="reentrant"), "use non-reentrant checkpointing"),
        ("full", replace(OFF, image_size=(64, 64)), "leave --image-size out"),
    ],
)
def test_refused_settings(method: str, settings: Settings, message: str) -> None:
    """What the real code does not run is said with what to do."""
    with pytest.raises(InputError, match=message):
        built(method, settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision": {"vision_output_dim": 100}}, "vision_output_dim=100 is not hidden_size=128 times the 2"),
        (
            {"vision": {"intermediate_layers_indices": [0, 9]}},
            "'intermediate_layers_indices' must be a list of layers from 0 to 2",
        ),
        ({"text": {"cross_attention_layers": [3, 1]}}, "'cross_attention_layers' must rise"),
        ({"text": {"cross_attention_layers": "all"}}, "'cross_attention_layers' must be a list of layers"),
        ({"text": {"model_type": "llama"}}, "model_type 'llama' is a part of Llama 3.2 Vision"),
        ({"vision_config": 7}, "'vision_config' is 7, but must be an object"),
    ],
)
def test_refused_configs(changes: dict[str, Any], message: str) -> None:
    """What cannot be, or is not planned, is said with its reason."""
    with pytest.raises(InputError, match=message):
        built(**changes)
