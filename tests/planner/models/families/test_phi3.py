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


def test_a_part_that_is_no_pairs_is_refused() -> None:
    """Heads of 64 rotated by a 64th leave one column, which is no pair."""
    config = small_models.config("phi3", partial_rotary_factor=1 / 64)
    with pytest.raises(InputError, match="would be rotated in pairs"):
        read_spec("x", ConfigReader(config, "config.json"))
