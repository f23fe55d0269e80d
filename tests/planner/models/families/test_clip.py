"""What is particular to CLIP: two towers, pairs in the loss, and what needs one sequence of text."""

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

OFF = Settings(micro_batch_size=4, seq_len=77, gradient_checkpointing="off")


def built(method: str = "full", settings: Settings = OFF, **changes: Any) -> Network:
    """The network of the small CLIP with other keys."""
    return build(read_spec("clip", ConfigReader(small_models.config("clip", **changes), "clip")), parse(method), settings)


@pytest.mark.traced
def test_other_kernels() -> None:
    """Eager attention and FlashAttention."""
    families.check_kernels("clip")


def test_adapters_lie_in_both_towers() -> None:
    """`all-linear` takes both and their projections; a pattern takes one."""
    names = {p.name.split(".")[0] for p in built("lora").parameters if p.adapter and not p.buffer}
    assert names == {"vision_model", "text_model", "visual_projection", "text_projection"}
    one = built("lora(target_modules=re:text_model.*_proj)")
    assert {p.name.split(".")[0] for p in one.parameters if p.adapter and not p.buffer} == {"text_model"}


def test_a_frozen_image_tower_needs_less() -> None:
    """It keeps no activations, and has no gradients and no states."""
    peaks = [step_memory(built(m), OFF, find("adamw")).peak.peak_bytes for m in ("full", "full(frozen=vision_model)")]
    assert peaks[0] > peaks[1]


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("prompt_tuning", {}, "for which peft has no virtual tokens and no prefixes"),
        ("full", {"vision_config": {"image_size": [64, 32], "patch_size": 8}}, "CLIP's code takes one number for image_size"),
        ("full", {"text_config": {"hidden_size": 100}}, "hidden_size=100 is not a multiple of num_attention_heads=8"),
        ("full", {"vision_config": "large"}, "'vision_config' is \"large\", but must be an object"),
        ("full", {"projection_dim": 0}, "'projection_dim' is 0, but must be from 1"),
    ],
)
def test_refused(method: str, changes: dict[str, Any], message: str) -> None:
    """What cannot be is said with its reason."""
    settings = Settings(4, 50, gradient_checkpointing="off")
    with pytest.raises(InputError, match=message):
        built(method, settings, **changes)


def test_texts_longer_than_the_table() -> None:
    """The text tower has 77 positions."""
    with pytest.raises(InputError, match="a table of 77 positions"):
        built(settings=Settings(seq_len=100))
