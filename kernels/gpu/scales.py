"""The scales of blocks, decoded inside a program."""

from typing import Any

import torch
import triton
import triton.language as tl

from tuneplan.kernels.packed import Packed4bit, Packed8bit


def weight_arguments(packed: Packed4bit | Packed8bit) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """The first six arguments of a program that decodes a weight, and the constants that say how its scales are stored.

    A program without nested scales never reads their tensors; the table of values stands in for them.
    """
    nested, code = packed.nested, packed.code
    second = (nested.code, nested.absmax, nested.offset) if nested else (code, code, code)
    constants = {"NESTED": nested is not None, "BLOCK": packed.blocksize, "BLOCK2": nested.blocksize if nested else 1}
    return (packed.data.view(torch.uint8), packed.absmax, code, *second), constants


@triton.jit
def scales(
    absmax,
    code2,
    absmax2,
    offset,
    first,
    block,
    mask,
    NESTED: tl.constexpr,
    BLOCK2: tl.constexpr,
):
    """fp32 scales of the blocks `first + block`: `first` counts in 64 bits, `block` in 32. Masked ones are zero or the offset."""
    if NESTED:
        byte = tl.load(absmax + first + block, mask=mask, other=0).to(tl.int32)
        second = tl.load(absmax2 + first // BLOCK2 + ((first % BLOCK2).to(tl.int32) + block) // BLOCK2, mask=mask, other=0.0)
        decoded = tl.load(code2 + byte) * second + tl.load(offset)
    else:
        decoded = tl.load(absmax + first + block, mask=mask, other=0.0)
    return decoded
