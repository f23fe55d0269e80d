"""What is particular to models of images and text: the tower frozen or trained, image tokens, and configs that are refused."""

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
from tuneplan.profiling import family_matrix, small_models

OFF = Settings(micro_batch_size=2, seq_len=100, gradient_checkpointing="off")
IMAGE = 36
"""Tokens of an image of the small model: 48 x 48 pixels in patches of 8 x 8."""


def built(method: str = "full", settings: Settings = OFF, **changes: Any) -> Network:
    """The network of the small model with other keys."""
    return build(read_spec("llava", ConfigReader(small_models.config("llava", **changes), "llava")), parse(method), settings)


@pytest.mark.traced
def test_other_kernels() -> None:
    """Eager attention and FlashAttention."""
    families.check_kernels("llava")


@pytest.mark.traced
@pytest.mark.parametrize("method", ["full(frozen=vision_tower)", "lora(target_modules=re:.*language_model.*_proj)"])
def test_a_frozen_tower(method: str) -> None:
    """Without a gradient in the tower its layers keep nothing; two images in each sequence."""
    model = small_models.load("llava")
    settings = Settings(micro_batch_size=2, seq_len=100, gradient_checkpointing="off", images=2)
    trained, peak = family_matrix.traced(model, method, settings)
    network, memory = family_matrix.estimated(model, method, settings)
    assert trained == network.trainable_parameters
    assert peak == pytest.approx(max(memory.phases[p].peak_bytes for p in family_matrix.STEP_PHASES), rel=0.001)


def test_a_frozen_tower_needs_less() -> None:
    """Its gradients, states and activations."""
    peaks = [step_memory(built(m), OFF, find("adamw")).peak.peak_bytes for m in ("full", "full(frozen=vision_tower)")]
    assert peaks[0] > peaks[1]
    frozen = {p.name for p in built("full(frozen=vision_tower)").parameters if not p.trainable and not p.buffer}
    assert {name.startswith("model.vision_tower.") for name in frozen} == {True}


def test_layers_without_a_part_in_the_loss_get_no_states() -> None:
    """The tower's last layer and norm are left to be trained, and no optimizer ever sees their gradient."""
    idle = {p.name for p in built().parameters if p.idle}
    assert {".".join(name.split(".")[:5]) for name in idle if "encoder" in name} == {"model.vision_tower.encoder.layers.2"}
    assert {"model.vision_tower.post_layernorm.weight", "model.vision_tower.post_layernorm.bias"} < idle


def test_the_sequence_has_room_for_its_images() -> None:
    """An image takes as many tokens as it has patches, and the class token too where it is kept."""
    assert read_spec("llava", ConfigReader(small_models.config("llava"), "llava")).image_tokens == IMAGE
    full = small_models.config("llava", vision_feature_select_strategy="full")
    assert read_spec("llava", ConfigReader(full, "llava")).image_tokens == IMAGE + 1
    with pytest.raises(InputError, match="have no room for 3"):
        built(settings=Settings(seq_len=100, images=3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_config": {"model_type": "opt"}}, "model_type 'opt' is a part of LLaVA that tuneplan does not know"),
        ({"vision_config": {"model_type": "pixtral"}}, "model_type 'pixtral' is a part of LLaVA"),
        ({"vision_feature_layer": [-2, -1]}, "several vision_feature_layer are not known"),
        ({"vision_feature_layer": -9}, "'vision_feature_layer' is -9, but must be from -4 to 3"),
        ({"vision_feature_select_strategy": "cls"}, "use default or full"),
        ({"text_config": {"hidden_size": "wide"}}, "text_config: 'hidden_size' is \"wide\", but must be an integer"),
        ({"text_config": 7}, "'text_config' is 7, but must be an object"),
    ],
)
def test_refused_configs(changes: dict[str, Any], message: str) -> None:
    """What cannot be, or is not planned, is said with its reason."""
    with pytest.raises(InputError, match=message):
        built(**changes)


def test_a_frozen_module_that_is_not_there() -> None:
    """Names of `full(frozen=...)` are checked."""
    with pytest.raises(InputError, match="no such module"):
        built("full(frozen=visual)")


def test_images_of_a_text_model() -> None:
    """They are refused where nothing reads them."""
    spec = read_spec("llama", ConfigReader(small_models.config("llama"), "llama"))
    with pytest.raises(InputError, match="leave --images out"):
        build(spec, parse("full"), Settings(images=2))
