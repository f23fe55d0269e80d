"""Which attention kernel runs: `sdpa` is a dispatcher, and its choice decides whether memory grows with length squared.

Mirrors `use_gqa_in_sdpa` of transformers 5.23 (integrations/sdpa_attention.py) and the checks of
aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, torch 2.13.
"""

from dataclasses import dataclass

from tuneplan.planner.training.settings import Settings

FLASH_MAX_HEAD_DIM = 256
AMPERE = (8, 0)


@dataclass(frozen=True, slots=True)
class Kernel:
    """The kernel that runs, and why it is not flash (empty when it is)."""

    name: str
    reason: str = ""


def choose(settings: Settings, dtype: str, grouped: bool, head_dim: int, value_dim: int = 0) -> Kernel:
    """The kernel for queries of `dtype`.

    Args:
        settings: the implementation asked for, whether a mask is passed, and the card's compute capability.
        dtype: of queries, keys and values.
        grouped: fewer key/value heads than query heads.
        head_dim: size of a head.
        value_dim: size of a head of the values, where it is another (flash takes one size alone).

    Returns:
        "eager", "flash", "efficient" or "math". sdpa: flash refuses fp32, masks, heads above 256 and cards before Ampere; the
        memory-efficient kernel refuses grouped heads, which transformers passes on unless there is a mask; math takes the rest.
    """
    if settings.attention == "eager":
        return Kernel("eager")
    if settings.attention == "flash":
        return Kernel("flash")
    reasons = []
    if dtype == "fp32":
        reasons.append("queries are fp32")
    if settings.padded:
        reasons.append("padding, images or a sliding window needs a mask")
    if head_dim > FLASH_MAX_HEAD_DIM:
        reasons.append(f"heads of {head_dim} are above {FLASH_MAX_HEAD_DIM}")
    if value_dim not in (0, head_dim):
        reasons.append(f"values have {value_dim} columns and queries {head_dim}")
    if settings.compute_capability < AMPERE:
        reasons.append("the card is older than Ampere")
    if not reasons:
        return Kernel("flash")
    repeated = not grouped or settings.padded or head_dim > FLASH_MAX_HEAD_DIM
    return Kernel("efficient" if repeated else "math", " and ".join(reasons))
