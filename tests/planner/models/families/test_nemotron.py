"""What is particular to Nemotron: nothing but its norms; the other kernels."""

import families
import pytest


@pytest.mark.traced
def test_other_kernels() -> None:
    """Eager attention, FlashAttention, and a cache that the model keeps."""
    families.check_kernels("nemotron")
