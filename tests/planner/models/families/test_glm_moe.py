"""What is particular to GLM-4 MoE and MiniMax M2: kernels, and configs that are refused."""

from typing import Any

import families
import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.registry import read_spec
from tuneplan.profiling import small_models

pytestmark = pytest.mark.traced


@pytest.mark.parametrize("name", ["glm4_moe", "minimax_m2"])
def test_other_kernels(name: str) -> None:
    """Eager attention, FlashAttention, and a cache that the model keeps."""
    families.check_kernels(name)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("glm4_moe", {"n_group": 3}, "n_group=3 does not divide the 16 experts"),
        ("glm4_moe", {"n_group": 16}, "less than two of 16 experts a group"),
        ("glm4_moe", {"num_experts_per_tok": 17}, "num_experts_per_tok=17, but there are 16"),
        ("glm4_moe", {"n_routed_experts": "16"}, "n_routed_experts"),
        ("glm4_moe", {"partial_rotary_factor": 0.01}, "rotated in pairs"),
        ("minimax_m2", {"rotary_dim": 97}, "rotary_dim=97 of 96"),
        ("minimax_m2", {"rotary_dim": 1}, "rotary_dim=1 of 96"),
        ("minimax_m2", {"router_jitter_noise": 0.1}, "router_jitter_noise"),
        ("minimax_m2", {"num_local_experts": 0}, "num_local_experts"),
    ],
)
def test_configs_that_cannot_be(name: str, changes: dict[str, Any], message: str) -> None:
    """What makes no sense, or is not planned, is refused by key."""
    with pytest.raises(InputError, match=message):
        read_spec("x", ConfigReader(small_models.config(name, **changes), "config.json"))
