"""What is particular to Mistral 3 with images: one mask for all images, sizes rounded up, text alone, and refused configs."""

from dataclasses import replace
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

OFF = Settings(micro_batch_size=2, seq_len=200, gradient_checkpointing="off", image_size=(96, 112))


def built(method: str = "full", settings: Settings = OFF, vision: dict[str, Any] | None = None, **keys: Any) -> Network:
    """The network of the small model with other keys, `vision` those of its tower."""
    config = small_models.config("mistral3", **keys)
    if vision:
        config["vision_config"] |= vision
    return build(read_spec("mistral3", ConfigReader(config, "mistral3")), parse(method), settings)


@pytest.mark.traced
def test_other_kernels() -> None:
    """Eager attention, FlashAttention, and a cache."""
    families.check_kernels("mistral3")


@pytest.mark.traced
@pytest.mark.parametrize(
    ("method", "changes"), [("lora", {"images": 2}), ("full(frozen=vision_tower)", {}), ("qlora", {"images": 0})]
)
def test_steps(method: str, changes: dict[str, Any]) -> None:
    """Two images; a frozen tower; text alone."""
    settings = replace(OFF, **changes)
    trained, peak = family_matrix.traced(small_models.load("mistral3"), method, settings)
    network, memory = family_matrix.estimated(small_models.load("mistral3"), method, settings)
    assert trained == network.trainable_parameters
    assert peak == pytest.approx(max(memory.phases[p].peak_bytes for p in family_matrix.STEP_PHASES), rel=0.001)


def test_the_mask_grows_with_the_square_of_the_batch() -> None:
    """It has every pair of patches of all images."""
    masks = []
    for batch in (2, 4, 8):
        network = built(settings=replace(OFF, micro_batch_size=batch))
        made = [op.output for run in network.runs for op in run.block.ops if op.name == "patch_mask"]
        masks.append(sum(tensor.nbytes for tensor in made if tensor is not None))
    assert [16 * masks[0], 4 * masks[1]] == [masks[2], masks[2]]


@pytest.mark.parametrize(("size", "tokens"), [((96, 112), 42), ((97, 112), 49), ((1, 1), 1), (None, 48 * 48)])
def test_tokens_of_an_image(size: tuple[int, int] | None, tokens: int) -> None:
    """Its sides are rounded up to whole tokens of 2 x 2 patches."""
    spec = read_spec("mistral3", ConfigReader(small_models.config("mistral3"), "mistral3"))
    assert tokens == (spec if size is None else spec.sized(size)).image_tokens


def test_text_alone_takes_less() -> None:
    """And has all weights."""
    peaks = [step_memory(built(settings=s), s, find("adamw")).peak.peak_bytes for s in (OFF, replace(OFF, images=0))]
    assert peaks[0] > peaks[1]
    assert built().shapes() == built(settings=replace(OFF, images=0)).shapes()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"vision_feature_layer": -2}, "vision_feature_layer other than -1 is not known"),
        ({"projector_hidden_act": "gulp"}, "projector_hidden_act 'gulp' is an activation that tuneplan does not know"),
        ({"vision": {"hidden_size": 132}}, "heads of 66 cannot be rotated by rows and columns"),
        ({"vision": {"model_type": "siglip_vision_model"}}, "model_type 'siglip_vision_model' is a part of Mistral 3"),
        ({"text_config": {"model_type": "llama"}}, "model_type 'llama' is a part of Mistral 3"),
    ],
)
def test_refused_configs(keys: dict[str, Any], message: str) -> None:
    """What cannot be, or is not planned, is said with its reason."""
    with pytest.raises(InputError, match=message):
        built(**keys)
