"""What is particular to Phi-3: fused projections; the other kernels, and configs that are refused."""

import families
import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.registry import read_spec
from tuneplan.profiling import small_models

pytestmark = pytest.mark.traced


def test_other_kernels() -> None:
    """Eager attention, FlashAttention, and a cache that the model keeps."""
    families.check_kernels("phi3")


def test_partial_rotary_positions_are_refused() -> None:
    """By key, since their memory would differ."""
    config = small_models.config("phi3", partial_rotary_factor=0.75)
    with pytest.raises(InputError, match="rotates a part of each head"):
        read_spec("x", ConfigReader(config, "config.json"))
