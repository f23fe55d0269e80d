"""What is common to the dense decoders: the other kernels, and configs that are refused."""

from typing import Any

import families
import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.registry import read_spec
from tuneplan.profiling import small_models

pytestmark = pytest.mark.traced


@pytest.mark.parametrize("name", ["phi", "gpt2", "opt", "gpt_neox", "cohere2", "olmo"])
def test_other_kernels(name: str) -> None:
    """Eager attention, FlashAttention, and a cache that the model keeps."""
    families.check_kernels(name)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn is not planned"),
        ("gpt2", {"n_head": 7}, "n_embd=512 is not a multiple of n_head=7"),
        ("opt", {"layerdrop": 0.1}, "layerdrop skips layers at random"),
        ("phi", {"partial_rotary_factor": 1.5}, "must be from 0.0 to 1.0"),
        ("stablelm", {"qk_layernorm": True}, "has a norm for each head"),
        ("cohere2", {"layer_types": ["full_attention"]}, "'layer_types' must be a list of 4"),
        ("phi", {"hidden_act": "snake"}, "an activation that tuneplan does not know"),
    ],
)
def test_configs_that_cannot_be(name: str, changes: dict[str, Any], message: str) -> None:
    """What the families do not plan is refused by key."""
    with pytest.raises(InputError, match=message):
        read_spec("x", ConfigReader(small_models.config(name, **changes), "config.json"))
