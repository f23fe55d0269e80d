"""Which kernel sdpa runs."""

import pytest

from tuneplan.planner.training.attention_kernel import choose
from tuneplan.planner.training.settings import Settings


@pytest.mark.parametrize(
    ("run", "dtype", "grouped", "head_dim", "kernel"),
    [
        (Settings(), "bf16", False, 128, "flash"),
        (Settings(), "bf16", True, 128, "flash"),
        (Settings(), "fp32", False, 128, "efficient"),
        (Settings(), "fp32", True, 128, "math"),
        (Settings(padded=True), "bf16", False, 128, "efficient"),
        (Settings(padded=True), "bf16", True, 128, "efficient"),
        (Settings(), "bf16", False, 256, "flash"),
        (Settings(), "bf16", False, 288, "efficient"),
        (Settings(compute_capability=(7, 5)), "fp16", False, 128, "efficient"),
        (Settings(compute_capability=(7, 5)), "fp16", True, 128, "math"),
        (Settings(compute_capability=(9, 0)), "bf16", True, 128, "flash"),
        (Settings(attention="eager"), "bf16", True, 128, "eager"),
        (Settings(attention="flash", padded=True), "bf16", True, 128, "flash"),
    ],
)
def test_choice(run: Settings, dtype: str, grouped: bool, head_dim: int, kernel: str) -> None:
    """By dtype, mask, grouped heads, head size and card, as transformers and torch dispatch."""
    found = choose(run, dtype, grouped, head_dim)
    assert kernel == found.name
    assert (kernel in ("flash", "eager")) == (found.reason == "")


def test_all_reasons_are_named() -> None:
    """Where several things stand against flash, each is said."""
    reason = choose(Settings(padded=True, compute_capability=(7, 0)), "fp32", False, 512).reason
    for words in ("queries are fp32", "needs a mask", "above 256", "older than Ampere"):
        assert words in reason
