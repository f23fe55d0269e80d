"""What is particular to Idefics3 and SmolVLM: tiles of an image, text alone, and configs that are refused."""

from dataclasses import replace
from typing import Any

import families
import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.families.idefics3 import Idefics3Spec
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling import family_matrix, small_models

OFF = Settings(micro_batch_size=2, seq_len=200, gradient_checkpointing="off", image_size=(60, 64))


def spec_of(**keys: Any) -> Idefics3Spec:
    """The small model with other keys."""
    found = read_spec("smolvlm", ConfigReader(small_models.config("smolvlm", **keys), "smolvlm"))
    assert isinstance(found, Idefics3Spec)
    return found


def built(settings: Settings = OFF, **keys: Any) -> Network:
    """Its network."""
    return build(spec_of(**keys), parse("full"), settings)


@pytest.mark.traced
def test_other_kernels() -> None:
    """Eager attention, FlashAttention, and a cache."""
    families.check_kernels("smolvlm")


@pytest.mark.traced
@pytest.mark.parametrize(
    ("method", "changes"), [("lora", {"images": 2}), ("full(frozen=vision_model)", {}), ("lora", {"images": 0})]
)
def test_steps(method: str, changes: dict[str, Any]) -> None:
    """Two images; a frozen tower; text alone."""
    settings = replace(OFF, **changes)
    trained, peak = family_matrix.traced(small_models.load("smolvlm"), method, settings)
    network, memory = family_matrix.estimated(small_models.load("smolvlm"), method, settings)
    assert trained == network.trainable_parameters
    assert peak == pytest.approx(max(memory.phases[p].peak_bytes for p in family_matrix.STEP_PHASES), rel=0.001)


@pytest.mark.parametrize(
    ("size", "tiles", "around"), [((32, 32), 1, 3), ((20, 10), 1, 3), ((32, 33), 3, 9), ((60, 64), 5, 14), (None, 17, 40)]
)
def test_tiles_of_an_image(size: tuple[int, int] | None, tiles: int, around: int) -> None:
    """One where it is no larger than a tile; else as many as cover it, and the whole; 4 x 4 unless a size is given."""
    spec = spec_of() if size is None else spec_of().sized(size)
    assert isinstance(spec, Idefics3Spec)
    assert (tiles, 4 * tiles, around) == (spec.tiles, spec.image_tokens, spec.around)


@pytest.mark.traced
def test_tokens_around_are_those_of_the_processor() -> None:
    """The text that the processor puts in the place of an image, split at its own tokens."""
    processing = pytest.importorskip("transformers.models.smolvlm.processing_smolvlm")
    import re

    for grid in ((0, 0), (2, 3)):
        text = processing.get_image_prompt_string(*grid, 4, "<fake>", "<image>", "<global-img>")
        pieces = re.findall(r"<fake>|<row_\d+_col_\d+>|<global-img>|\n+|<image>", text)
        spec = spec_of().sized((max(1, 32 * grid[0]), max(1, 32 * grid[1])))
        assert isinstance(spec, Idefics3Spec)
        assert len([piece for piece in pieces if piece != "<image>"]) <= spec.around
        assert len([piece for piece in pieces if piece == "<image>"]) == spec.image_tokens


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"scale_factor": 3}, "scale_factor=3 does not divide the 4 patches"),
        ({"text_config": {"model_type": "bert"}}, "model_type 'bert' is a part of Idefics3"),
        ({"vision_config": {"model_type": "clip_vision_model"}}, "model_type 'clip_vision_model' is a part of Idefics3"),
        ({"vision_config": 7}, "'vision_config' is 7, but must be an object"),
    ],
)
def test_refused_configs(keys: dict[str, Any], message: str) -> None:
    """What cannot be, or is not planned, is said with its reason."""
    with pytest.raises(InputError, match=message):
        built(**keys)


def test_refused_sizes() -> None:
    """Images without pixels, and more tiles than a sequence has room for."""
    with pytest.raises(InputError, match="images of 0 x 64 pixels cannot be"):
        built(replace(OFF, image_size=(64, 0)))
    with pytest.raises(InputError, match="68 tokens for an image and 40 around it"):
        built(replace(OFF, image_size=None, seq_len=100))
