"""What is particular to Gemma 3 and PaliGemma with images: masks in every layer, text alone, and configs that are refused."""

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


def built(method: str = "full", settings: Settings = OFF, vision: dict[str, Any] | None = None, **keys: Any) -> Network:
    """The network of the small model with other keys, `vision` those of its tower."""
    config = small_models.config("gemma3", **keys)
    config["vision_config"] |= vision or {}
    return build(read_spec("gemma3", ConfigReader(config, "gemma3")), parse(method), settings)


@pytest.mark.traced
def test_other_kernels() -> None:
    """Eager attention, FlashAttention, and a cache."""
    families.check_kernels("gemma3")


@pytest.mark.traced
@pytest.mark.parametrize(
    ("method", "changes"),
    [("lora", {"images": 2}), ("full(frozen=vision_tower)", {}), ("lora", {"images": 0}), ("lora", {"padded": True})],
)
def test_steps(method: str, changes: dict[str, Any]) -> None:
    """Two images; a frozen tower; text alone, which gets no masks but those of windows; padding."""
    settings = replace(OFF, **changes)
    trained, peak = family_matrix.traced(small_models.load("gemma3"), method, settings)
    network, memory = family_matrix.estimated(small_models.load("gemma3"), method, settings)
    assert trained == network.trainable_parameters
    assert peak == pytest.approx(max(memory.phases[p].peak_bytes for p in family_matrix.STEP_PHASES), rel=0.001)


def test_images_keep_flash_away() -> None:
    """They see themselves both ways, for which sdpa gets a mask; text in whole windows, and prompts, do without."""
    short = replace(OFF, seq_len=100)
    assert built(settings=short).notes["attention_kernel"] == "efficient"
    assert "images" in built(settings=short).notes["attention_kernel_reason"]
    assert built(settings=replace(short, images=0)).notes["attention_kernel"] == "flash"
    assert built("prompt_tuning", short).notes["attention_kernel"] == "flash"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_tokens_per_image": 15}, "mm_tokens_per_image=15 is not a square of a part of the 8 patches"),
        ({"mm_tokens_per_image": 9}, "mm_tokens_per_image=9 is not a square of a part of the 8 patches"),
        ({"vision": {"vision_use_head": True}}, "vision_use_head pools the patches for nobody to read"),
        ({"vision": {"image_size": [64, 32]}}, "SigLIP's code takes one number for image_size"),
        ({"vision": {"model_type": "clip_vision_model"}}, "model_type 'clip_vision_model' is a part of Gemma 3"),
        ({"text_config": {"model_type": "llama"}}, "model_type 'llama' is a part of Gemma 3"),
        ({"text_config": 7}, "'text_config' is 7, but must be an object"),
    ],
)
def test_refused_configs(changes: dict[str, Any], message: str) -> None:
    """What cannot be, or is not planned, is said with its reason."""
    with pytest.raises(InputError, match=message):
        built(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projection_dim": 100}, "projection_dim=100 is not the language model's hidden_size=512"),
        ({"text_config": {"model_type": "gemma3_text"}}, "model_type 'gemma3_text' is a part of PaliGemma"),
    ],
)
def test_refused_configs_of_paligemma(changes: dict[str, Any], message: str) -> None:
    """What cannot be, or is not planned, is said with its reason."""
    with pytest.raises(InputError, match=message):
        read_spec("paligemma", ConfigReader(small_models.config("paligemma", **changes), "paligemma"))


def test_an_image_of_paligemma_takes_its_patches() -> None:
    """All of them, and nothing stands around."""
    spec = read_spec("paligemma", ConfigReader(small_models.config("paligemma"), "paligemma"))
    assert (48 // 8) ** 2 == spec.image_tokens


def test_a_sequence_has_room_for_its_images() -> None:
    """An image takes 16 tokens here, and two enclose it."""
    with pytest.raises(InputError, match="16 tokens for an image and 2 around it, so that sequences of 200 have no room for 12"):
        built(settings=replace(OFF, images=12))
