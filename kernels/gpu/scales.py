"""The scales of blocks, decoded inside a program."""

from typing import Any

import triton
import triton.language as tl


@triton.jit
def scales(
    absmax: Any,
    code2: Any,
    absmax2: Any,
    offset: Any,
    first: Any,
    block: Any,
    mask: Any,
    NESTED: tl.constexpr,
    BLOCK2: tl.constexpr,
) -> Any:
    """fp32 scales of the blocks `first + block`: `first` counts in 64 bits, `block` in 32. Masked ones are zero or the offset."""
    if NESTED:
        byte = tl.load(absmax + first + block, mask=mask, other=0).to(tl.int32)
        second = tl.load(absmax2 + first // BLOCK2 + ((first % BLOCK2).to(tl.int32) + block) // BLOCK2, mask=mask, other=0.0)
        return tl.load(code2 + byte) * second + tl.load(offset)
    return tl.load(absmax + first + block, mask=mask, other=0.0)
