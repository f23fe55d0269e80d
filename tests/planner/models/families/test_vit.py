"""What is particular to models of images: their length, their batch, and what needs text."""

from typing import Any

import families
import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.memory import step_memory
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.training.optimizers import find
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling import small_models

OFF = Settings(micro_batch_size=2, seq_len=97, gradient_checkpointing="off")


def built(method: str = "full", settings: Settings = OFF, **changes: Any) -> Network:
    """The network of the small ViT with other keys."""
    return build(read_spec("vit", ConfigReader(small_models.config("vit", **changes), "vit")), parse(method), settings)


@pytest.mark.traced
def test_other_kernels() -> None:
    """Eager attention and FlashAttention."""
    families.check_kernels("vit")


def test_the_length_is_that_of_an_image() -> None:
    """64 x 96 pixels in patches of 8 x 8 are 96 tokens, and the class token one more."""
    assert read_spec("vit", ConfigReader(small_models.config("vit"), "vit")).fixed_length == 97
    with pytest.raises(InputError, match="a sequence of 97 tokens"):
        built(settings=Settings(seq_len=64))


def test_pixels_stay_until_the_update() -> None:
    """They are fp32, and live while the optimizer runs."""
    settings, adamw = OFF, find("adamw")
    few, many = (step_memory(built(settings=s), s, adamw) for s in (settings, Settings(4, 97, gradient_checkpointing="off")))
    grown = many.phases["optimizer_step"].peak_bytes - few.phases["optimizer_step"].peak_bytes
    assert grown == 2 * 3 * 64 * 96 * 4


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("prompt_tuning", {}, "puts virtual tokens and prefixes before text alone"),
        ("full", {"patch_size": 80}, "patch_size=80 x 80 is larger than image_size=64 x 96"),
        ("full", {"image_size": [64, 64, 64]}, "'image_size' must be a number of pixels, or two of them"),
        ("full", {"image_size": "big"}, "'image_size' is \"big\", but must be an integer"),
        ("full", {"num_attention_heads": 7}, "hidden_size=256 is not a multiple of num_attention_heads=7"),
    ],
)
def test_refused(method: str, changes: dict[str, Any], message: str) -> None:
    """What cannot be is said with its reason."""
    with pytest.raises(InputError, match=message):
        built(method, **changes)


def test_the_head_is_trained_whole() -> None:
    """PEFT knows no task of images, so the estimate says which options it needs."""
    network = built("lora")
    assert "modules_to_save=classifier" in network.notes["assumed"]
    assert {p.name for p in network.parameters if p.trainable and not p.adapter} == {"classifier.weight", "classifier.bias"}


def test_reentrant_checkpointing_of_a_frozen_tower() -> None:
    """It would train nothing."""
    with pytest.raises(InputError, match="use non-reentrant checkpointing"):
        built("lora", Settings(2, 97, gradient_checkpointing="reentrant"))
