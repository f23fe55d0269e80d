"""Formats in which weights are stored, by bits a weight and by the fixed bytes that come with each matrix."""

from dataclasses import dataclass

from tuneplan.planner.graph.tensor import BITS, Size, round_block


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """A bitsandbytes 4-bit format: packed values, scales a block, and code tables a matrix.

    With double quantization scales are bytes with a fp32 scale for 256 of them, an offset and a second table of 256 floats
    (Dettmers et al. 2023, QLoRA, section 3; bitsandbytes 0.50 functional.py `quantize_4bit`).
    """

    bits: int
    block: int
    nested: bool
    nested_block: int = 256

    def stored_bytes(self, count: Size) -> Size:
        """Bytes of a matrix of `count` weights, each tensor rounded as the allocator does."""
        packed = round_block(-(-count * self.bits // 8))
        blocks = -(-count // self.block)
        code = round_block(16 * 4)
        if not self.nested:
            return packed + round_block(4 * blocks) + code
        second = round_block(4 * -(-blocks // self.nested_block)) + round_block(256 * 4)
        offset = round_block(4)
        return packed + round_block(blocks) + second + code + offset


BLOCK_FORMATS = {
    "nf4": BlockFormat(4, 64, nested=False),
    "fp4": BlockFormat(4, 64, nested=False),
    "nf4-double": BlockFormat(4, 64, nested=True),
    "fp4-double": BlockFormat(4, 64, nested=True),
}


def stored_bytes(count: Size, storage: str) -> Size:
    """Bytes of `count` weights of one tensor in a format or a plain dtype, as the allocator counts them."""
    if storage in BLOCK_FORMATS:
        return BLOCK_FORMATS[storage].stored_bytes(count)
    return round_block(count * BITS[storage] // 8)
