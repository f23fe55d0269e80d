"""4-bit weights to dense ones in one launch, scales decoded on the way.

A program takes WORDS consecutive 32-bit words, eight values each. A thread takes single words, so that a word's values are one
store of 128 bits; a value is one lookup by a shuffle and one multiplication, and a scale is decoded once for its block. Values
that do not fill a word, and data that is not aligned to words, go through a program that takes bytes.

Fused multiply-add stays off: `code2 * absmax2 + offset` is rounded after each step, as bitsandbytes does it.
"""

import torch
import triton
import triton.language as tl

from tuneplan.kernels.gpu.lookup import table_of, values_of_words
from tuneplan.kernels.gpu.rounding import store
from tuneplan.kernels.gpu.scales import scales, weight_arguments
from tuneplan.kernels.packed import Packed4bit

WORDS = 1024
WARPS = 4
"""Of the shapes tried, the fewest instructions a value that leave registers for 64 warps a multiprocessor
(`python -m tuneplan.kernels.compiled_programs`); not timed on a GPU yet."""
BYTES = 1024
"""Of a program that takes bytes."""


@triton.jit
def _from_words(
    data,
    absmax,
    code,
    code2,
    absmax2,
    offset,
    out,
    words,
    row_words,
    row_steps,
    NESTED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK2: tl.constexpr,
    STEP: tl.constexpr,
    WORDS: tl.constexpr,
):
    BLOCK_WORDS: tl.constexpr = BLOCK // 8
    SCALES: tl.constexpr = WORDS // BLOCK_WORDS if WORDS > BLOCK_WORDS else 1
    start = tl.program_id(0).to(tl.int64) * WORDS
    left = tl.minimum(words - start, WORDS).to(tl.int32)
    # threads take single words: four side by side would have to be exchanged before they are stored
    word_W = tl.max_contiguous(tl.arange(0, WORDS), 1)
    packed_W = tl.load(data.to(tl.pointer_type(tl.int32)) + start + word_W, mask=word_W < left, other=0)

    scale_S = tl.arange(0, SCALES)
    there_S = scale_S * BLOCK_WORDS < left
    absmax_S = scales(absmax, code2, absmax2, offset, start // BLOCK_WORDS, scale_S, there_S, NESTED, BLOCK2)

    v0, v1, v2, v3, v4, v5, v6, v7 = values_of_words(packed_W, table_of(code))
    even_W22 = tl.join(tl.join(v0, v4), tl.join(v2, v6))
    odd_W22 = tl.join(tl.join(v1, v5), tl.join(v3, v7))
    value_V = tl.reshape(tl.join(even_W22, odd_W22), (WORDS * 8,))
    if SCALES > 1:
        value_V = value_V * tl.reshape(tl.broadcast_to(absmax_S[:, None], (SCALES, BLOCK)), (WORDS * 8,))
    else:
        value_V = value_V * tl.broadcast_to(absmax_S, (WORDS * 8,))
    if STEP:
        # rows are whole words, `row_steps * STEP` values apart; a row's first word is found once for each word
        first_row = start // row_words
        column_W = (start - first_row * row_words).to(tl.int32) + word_W
        row_W = column_W // row_words
        at_W = (first_row + row_W) * row_steps * STEP + (column_W - row_W * row_words) * 8
        store(out + at_W[:, None] + tl.arange(0, 8)[None, :], tl.reshape(value_V, (WORDS, 8)), (word_W < left)[:, None])
    else:
        at_V = tl.arange(0, WORDS * 8)
        store(out + start * 8 + at_V, value_V, at_V < left * 8)


@triton.jit
def _from_bytes(
    data,
    absmax,
    code,
    code2,
    absmax2,
    offset,
    out,
    first_byte,
    values,
    row_values,
    row_stride,
    NESTED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK2: tl.constexpr,
    BYTES: tl.constexpr,
):
    start = first_byte + tl.program_id(0).to(tl.int64) * BYTES
    value_V = start * 2 + tl.arange(0, BYTES * 2)
    there_V = value_V < values
    byte_V = tl.load(data.to(tl.pointer_type(tl.uint8)) + value_V // 2, mask=there_V, other=0).to(tl.int32)
    nibble_V = (byte_V >> ((1 - value_V % 2) * 4).to(tl.int32)) & 15
    first = start * 2 // BLOCK
    absmax_V = scales(absmax, code2, absmax2, offset, first, (value_V // BLOCK - first).to(tl.int32), there_V, NESTED, BLOCK2)
    row_V = value_V // row_values
    store(out + row_V * row_stride + (value_V - row_V * row_values), tl.load(code + nibble_V) * absmax_V, there_V)


def dequantize(packed: Packed4bit, out: torch.Tensor, words: int = WORDS, warps: int = WARPS) -> None:
    """Decode a weight into `out` on the current stream.

    Args:
        packed: the weight; checked already.
        out: [rows, columns] or any shape if contiguous; rows may be apart, values in a row not; checked already.
        words: 32-bit words a program takes, a power of two.
        warps: warps of a program.
    """
    values = packed.values
    if not values:
        return
    apart = not out.is_contiguous()
    columns, row_stride = (out.shape[-1], out.stride(-2)) if apart else (values, values)
    in_words = packed.data.data_ptr() % 4 == 0 and not (apart and columns % 8)
    whole = values // 8 if in_words else 0
    step = 0  # rows side by side
    if apart:
        step = 8 if row_stride % 8 == 0 and out.data_ptr() % 16 == 0 else 1
        words = words if step == 8 else words // 2  # values are stored one by one, and a thread holds a pointer for each
    weight, constants = weight_arguments(packed)
    with torch.cuda.device_of(packed.data):
        if whole:
            _from_words[(triton.cdiv(whole, words),)](
                *weight,
                out,
                whole,
                columns // 8,
                row_stride // max(step, 1),
                **constants,
                STEP=step,
                WORDS=words,
                num_warps=warps,
                enable_fp_fusion=False,
            )
        if whole * 8 < values:
            _from_bytes[(triton.cdiv(values - whole * 8, BYTES * 2),)](
                *weight, out, whole * 4, values, columns, row_stride, **constants, BYTES=BYTES, enable_fp_fusion=False
            )
