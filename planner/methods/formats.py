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


@dataclass(frozen=True, slots=True)
class RowFormat:
    """Whole numbers with a scale for each row, or for each group of a row's entries.

    Attributes:
        bits: of a weight.
        scale_bytes: of a scale.
        group: weights of a row that share a scale; 0 for the whole row.
        zero_bits: of a zero point beside each scale.
        index_bytes: of an index beside each column.
        kernel: the module that multiplies by it, "8bit" (bitsandbytes) or "packed" (dequantized for each product).
        source: whose layout it is.
    """

    bits: int
    scale_bytes: int
    group: int
    zero_bits: int
    index_bytes: int
    kernel: str
    source: str

    def stored_bytes(self, count: Size, rows: Size) -> Size:
        """Bytes of a matrix, each tensor rounded as the allocator does."""
        columns = count // rows
        scales = rows * (1 if self.group == 0 else -(-columns // self.group))
        total = round_block(-(-count * self.bits // 8)) + round_block(scales * self.scale_bytes)
        total = total + (round_block(-(-scales * self.zero_bits // 8)) if self.zero_bits else 0)
        return total + (round_block(columns * self.index_bytes) if self.index_bytes else 0)


ROW_FORMATS = {
    "int8": RowFormat(8, 4, 0, 0, 0, "8bit", "bitsandbytes 0.50 nn/modules.py Int8Params: CB and SCB"),
    "gptq-4bit": RowFormat(4, 2, 128, 4, 4, "packed", "GPTQModel: qweight, qzeros, fp16 scales in groups of 128, g_idx"),
    "awq-4bit": RowFormat(4, 2, 128, 4, 0, "packed", "AutoAWQ: qweight, qzeros, fp16 scales in groups of 128"),
}
QUANTIZED = {*BLOCK_FORMATS, *ROW_FORMATS}


def kernel(storage: str) -> str:
    """The kind of module that holds a weight: "4bit", "8bit", "packed", or "" for a dense one."""
    if storage in ROW_FORMATS:
        return ROW_FORMATS[storage].kernel
    return "4bit" if storage in BLOCK_FORMATS else ""


def stored_bytes(count: Size, storage: str, rows: Size = 1) -> Size:
    """Bytes of `count` weights of one tensor in a format or a plain dtype, as the allocator counts them."""
    if storage in BLOCK_FORMATS:
        return BLOCK_FORMATS[storage].stored_bytes(count)
    if storage in ROW_FORMATS:
        return ROW_FORMATS[storage].stored_bytes(count, rows)
    return round_block(count * BITS[storage] // 8)
