"""What is particular to Qwen3-VL: images of any size, text alone, features of inner layers, and configs that are refused."""

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

OFF = Settings(micro_batch_size=2, seq_len=200, gradient_checkpointing="off", image_size=(96, 128))
IMAGE = 48
"""Tokens of such an image: 6 x 8 of 16 x 16 pixels."""


def config(**changes: Any) -> dict[str, Any]:
    """The config of the small model; `vision` and `text` change keys of its parts."""
    known = small_models.config("qwen3_vl")
    for part in ("vision", "text"):
        known[f"{part}_config"] |= changes.pop(part, {})
    return {**known, **changes}


def built(method: str = "full", settings: Settings = OFF, **changes: Any) -> Network:
    """The network of the small model with other keys."""
    return build(read_spec("qwen3_vl", ConfigReader(config(**changes), "qwen3_vl")), parse(method), settings)


@pytest.mark.traced
def test_other_kernels() -> None:
    """Eager attention, FlashAttention, and a cache."""
    families.check_kernels("qwen3_vl")


@pytest.mark.traced
@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("full(frozen=visual)", {}),
        ("lora", {"images": 2, "image_size": (48, 96)}),
        ("lora", {"images": 0}),
        ("full", {"images": 0, "gradient_checkpointing": "non-reentrant"}),
        ("lora", {"padded": True}),
    ],
)
def test_steps(method: str, changes: dict[str, Any]) -> None:
    """A frozen tower; two images, smaller ones; text alone, for which the tower only lies there; padding."""
    model = small_models.load("qwen3_vl")
    settings = replace(OFF, **changes)
    trained, peak = family_matrix.traced(model, method, settings)
    network, memory = family_matrix.estimated(model, method, settings)
    assert trained == network.trainable_parameters
    assert peak == pytest.approx(max(memory.phases[p].peak_bytes for p in family_matrix.STEP_PHASES), rel=0.001)


@pytest.mark.parametrize(
    ("size", "tokens"), [((96, 128), IMAGE), ((100, 130), IMAGE), ((1, 1), 1), ((768, 768), 48 * 48), (None, 48 * 48)]
)
def test_tokens_of_an_image(size: tuple[int, int] | None, tokens: int) -> None:
    """Its sides are rounded to whole tokens of 2 x 2 patches; without a size images are squares of 768 pixels."""
    spec = read_spec("qwen3_vl", ConfigReader(config(), "qwen3_vl"))
    assert tokens == (spec if size is None else spec.sized(size)).image_tokens


def test_larger_images_take_more() -> None:
    """Of memory, though the sequence is as long as before."""
    sizes = [(32, 32), (96, 128), (160, 160)]
    peaks = [
        step_memory(built(settings=s), s, find("adamw")).peak.peak_bytes for s in (replace(OFF, image_size=z) for z in sizes)
    ]
    assert sorted(set(peaks)) == peaks


def test_text_alone_leaves_the_tower_idle() -> None:
    """Its weights are there and left to be trained, and no optimizer sees a gradient of them."""
    alone = built(settings=replace(OFF, images=0))
    assert built().shapes() == alone.shapes()
    assert {name for name in built().shapes() if name.startswith("model.visual.")} == {p.name for p in alone.parameters if p.idle}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (replace(OFF, images=5), "48 tokens for an image and 2 around it, so that sequences of 200 have no room for 5"),
        (replace(OFF, image_size=(0, 64)), "images of 64 x 0 pixels cannot be"),
        (replace(OFF, gradient_checkpointing="reentrant"), "reentrant checkpointing gives a layer gradients only where"),
    ],
)
def test_refused_settings(settings: Settings, message: str) -> None:
    """What cannot be is said with what to do."""
    with pytest.raises(InputError, match=message):
        built("lora", settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision": {"deepstack_visual_indexes": [2, 1]}}, "must be a list of layers from 0 to 3, rising"),
        ({"vision": {"deepstack_visual_indexes": [4]}}, "must be a list of layers from 0 to 3, rising"),
        ({"vision": {"deepstack_visual_indexes": 3}}, "must be a list of layers from 0 to 3, rising"),
        ({"vision": {"out_hidden_size": 100}}, "the tower gives 100 values a token"),
        ({"vision": {"num_heads": 3}}, "hidden_size=128 does not give heads of a multiple of 4 for num_heads=3"),
        ({"vision": {"num_position_embeddings": 50}}, "num_position_embeddings=50 is not the square of a number"),
        ({"vision": {"hidden_act": "gulp"}}, "hidden_act 'gulp' is an activation that tuneplan does not know"),
        ({"vision": {"depth": 0}}, "'depth' is 0, but must be"),
        ({"text": {"model_type": "gpt2"}}, "model_type 'gpt2' is a part of Qwen3-VL that tuneplan does not know"),
        ({"text": {"hidden_size": "wide"}}, "text_config: 'hidden_size' is \"wide\", but must be an integer"),
        ({"vision_config": 3}, "'vision_config' is 3, but must be an object"),
    ],
)
def test_refused_configs(changes: dict[str, Any], message: str) -> None:
    """What cannot be, or is not planned, is said with its reason."""
    with pytest.raises(InputError, match=message):
        built(**changes)


def test_a_size_for_a_model_that_has_its_own() -> None:
    """Refused, with what to do."""
    spec = read_spec("llava", ConfigReader(small_models.config("llava"), "llava"))
    with pytest.raises(InputError, match="leave --image-size out"):
        build(spec, parse("full"), Settings(seq_len=100, image_size=(96, 96)))
