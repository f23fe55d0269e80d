"""The scales of blocks, decoded inside a program."""

import triton
import triton.language as tl


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
