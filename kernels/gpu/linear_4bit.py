"""A few tokens times a 4-bit weight, the weight decoded inside: `y = x W^T`.

Legend: M tokens, N out_features, K in_features, W 32-bit words of eight values along K, S splits of K.

The vector program (one token) takes ROWS rows of the weight and walks along K: a word's eight values are looked up
two at a time (a lookup waits for its whole program twice), multiplied with fp32 copies of x and added up before the word's scale
is applied once. The matrix program (up to 64 tokens) makes the weight the left operand of the tensor cores; even and odd values
are two half products, so that nothing is interleaved, and the scale of a block comes after its product. K is split where the rows
alone do not fill the card; partial sums are added in a fixed order.
"""

import torch
import triton
import triton.language as tl

from tuneplan.kernels.gpu.rounding import BY_HAND, rounded, store
from tuneplan.kernels.gpu.scales import scales, weight_arguments
from tuneplan.kernels.packed import Packed4bit

VECTOR_ROWS = 8
VECTOR_WORDS = 128
VECTOR_WARPS = 4
MATRIX_ROWS = 128
MATRIX_WARPS = 4
"""Of programs of up to 32 tokens, twice as many beyond. From counts of instructions and registers
(`python -m tuneplan.kernels.compiled_programs`); not timed on a GPU yet."""
PROGRAMS = 264
"""Of the matrix program at least, before K is no longer split: two for each multiprocessor of an H200."""


@triton.jit
def _vector(
    data,
    absmax,
    code,
    code2,
    absmax2,
    offset,
    x,
    bias,
    out,
    features,
    words,
    NESTED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK2: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    BLOCK_WORDS: tl.constexpr = BLOCK // 8
    first = tl.program_id(0).to(tl.int64) * ROWS
    row_R = tl.arange(0, ROWS)
    there_R = row_R < features - first
    table_16 = tl.load(code + tl.arange(0, 16))
    first_block = first * words // BLOCK_WORDS
    sum_RW = tl.zeros((ROWS, WORDS), dtype=tl.float32)
    for start in range(0, words, WORDS):
        column_W = start + tl.arange(0, WORDS)
        there_W = column_W < words
        there_RW = there_R[:, None] & there_W[None, :]
        at_RW = (row_R * words)[:, None] + column_W[None, :]
        packed_RW = tl.load(data.to(tl.pointer_type(tl.int32)) + first * words + at_RW, mask=there_RW, other=0)
        # the halves of all four bytes at once: what is left of a byte is then one value, taken out by one instruction
        high_RW = (packed_RW >> 4) & 0x0F0F0F0F
        low_RW = packed_RW & 0x0F0F0F0F
        part_RW = tl.zeros((ROWS, WORDS), dtype=tl.float32)
        for byte in tl.static_range(4):
            at_W2 = (column_W * 8 + byte * 2)[:, None] + tl.arange(0, 2)[None, :]
            x_even_W, x_odd_W = tl.split(tl.load(x + at_W2, mask=there_W[:, None], other=0.0).to(tl.float32))
            nibble_RW2 = tl.join((high_RW >> (byte * 8)) & 255, (low_RW >> (byte * 8)) & 255)
            value_V = tl.gather(table_16, tl.reshape(nibble_RW2, (ROWS * WORDS * 2,)), 0)
            even_RW, odd_RW = tl.split(tl.reshape(value_V, (ROWS, WORDS, 2)))
            part_RW += x_even_W[None, :] * even_RW
            part_RW += x_odd_W[None, :] * odd_RW
        absmax_RW = scales(absmax, code2, absmax2, offset, first_block, at_RW // BLOCK_WORDS, there_RW, NESTED, BLOCK2)
        sum_RW += part_RW * absmax_RW
    y_R = tl.sum(sum_RW, axis=1)
    if BIAS:
        y_R += tl.load(bias + first + row_R, mask=there_R, other=0.0).to(tl.float32)
    store(out + first + row_R, y_R, there_R)


@triton.jit
def _matrix(
    data,
    absmax,
    code,
    code2,
    absmax2,
    offset,
    x,
    bias,
    out,
    tokens,
    features,
    width,
    split_blocks,
    NESTED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK2: tl.constexpr,
    BIAS: tl.constexpr,
    SPLIT: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    VALUES: tl.constexpr,
):
    HALF: tl.constexpr = VALUES // 2
    kind: tl.constexpr = x.dtype.element_ty
    first = tl.program_id(0).to(tl.int64) * ROWS
    row_N = tl.arange(0, ROWS)
    token_M = tl.arange(0, TOKENS)
    pair_K = tl.arange(0, HALF)
    there_N = row_N < features - first
    there_M = token_M < tokens
    code_16 = tl.load(code + tl.arange(0, 16))
    table_16 = rounded(code_16, kind) if BY_HAND else code_16
    sum_NM = tl.zeros((ROWS, TOKENS), dtype=tl.float32)
    begin = tl.program_id(1) * split_blocks * VALUES
    end = tl.minimum(begin + split_blocks * VALUES, width)
    first_block = first * width // BLOCK
    for start in range(begin, end, VALUES):
        at_NK = row_N[:, None] * (width // 2) + (start // 2 + pair_K)[None, :]
        byte_NK = tl.load(data + first * (width // 2) + at_NK, mask=there_N[:, None], other=0).to(tl.int32)
        high_NK = tl.reshape(tl.gather(table_16, tl.reshape(byte_NK >> 4, (ROWS * HALF,)), 0), (ROWS, HALF))
        low_NK = tl.reshape(tl.gather(table_16, tl.reshape(byte_NK & 15, (ROWS * HALF,)), 0), (ROWS, HALF))
        at_KM = token_M[None, :] * width + (start + pair_K * 2)[:, None]
        if BY_HAND or kind == tl.float32:
            even_KM = tl.load(x + at_KM, mask=there_M[None, :], other=0.0)
            odd_KM = tl.load(x + at_KM + 1, mask=there_M[None, :], other=0.0)
        else:
            pair_KM = tl.load(
                x.to(tl.pointer_type(tl.int32)) + token_M[None, :] * (width // 2) + (start // 2 + pair_K)[:, None],
                mask=there_M[None, :],
                other=0,
            )
            even_KM = pair_KM.to(tl.int16).to(kind, bitcast=True)
            odd_KM = (pair_KM >> 16).to(tl.int16).to(kind, bitcast=True)
        if BY_HAND:
            part_NM = tl.dot(high_NK, even_KM.to(tl.float32), input_precision="ieee")
            part_NM += tl.dot(low_NK, odd_KM.to(tl.float32), input_precision="ieee")
        else:
            part_NM = tl.dot(high_NK.to(kind), even_KM, input_precision="ieee")
            part_NM = tl.dot(low_NK.to(kind), odd_KM, part_NM, input_precision="ieee")
        block_N = (row_N * width + start) // BLOCK
        sum_NM += part_NM * scales(absmax, code2, absmax2, offset, first_block, block_N, there_N, NESTED, BLOCK2)[:, None]
    if BIAS and not SPLIT:
        sum_NM += tl.load(bias + first + row_N, mask=there_N, other=0.0).to(tl.float32)[:, None]
    at_NM = (tl.program_id(1) * tokens + token_M.to(tl.int64))[None, :] * features + (first + row_N)[:, None]
    store(out + at_NM, sum_NM, there_N[:, None] & there_M[None, :])


def linear(x: torch.Tensor, packed: Packed4bit, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """`out = x W^T + bias` on the current stream.

    Args:
        x: [tokens, in_features], contiguous, at most 64 tokens; checked already.
        packed: [out_features, in_features], whose rows are whole blocks; checked already.
        bias: [out_features] or None.
        out: [tokens, out_features] of the dtype of x, contiguous.
    """
    tokens, width = x.shape
    features = packed.shape[0]
    if not features:
        return
    (data, *scaling), constants = weight_arguments(packed)
    # both are read as 32-bit words
    data, x = (tensor if tensor.data_ptr() % 4 == 0 else tensor.clone() for tensor in (data, x))
    tensors = (data, *scaling, x, packed.code if bias is None else bias)
    constants["BIAS"] = bias is not None
    with torch.cuda.device_of(x):
        if tokens == 1:
            _vector[(triton.cdiv(features, VECTOR_ROWS),)](
                *tensors,
                out,
                features,
                width // 8,
                **constants,
                ROWS=VECTOR_ROWS,
                WORDS=VECTOR_WORDS,
                num_warps=VECTOR_WARPS,
                enable_fp_fusion=True,
            )
            return
        values = min(64, packed.blocksize)
        blocks, row_programs = width // values, triton.cdiv(features, MATRIX_ROWS)
        splits = min(max(PROGRAMS // row_programs, 1), max(blocks // 8, 1))
        split_blocks = triton.cdiv(blocks, splits)
        splits = triton.cdiv(blocks, split_blocks)
        sums = torch.empty((splits, tokens, features), dtype=torch.float32, device=x.device) if splits > 1 else out
        _matrix[(row_programs, splits)](
            *tensors,
            sums,
            tokens,
            features,
            width,
            split_blocks,
            **constants,
            SPLIT=splits > 1,
            TOKENS=max(16, triton.next_power_of_2(tokens)),
            ROWS=MATRIX_ROWS,
            VALUES=values,
            num_warps=MATRIX_WARPS if tokens <= 32 else 2 * MATRIX_WARPS,
            enable_fp_fusion=True,
        )
        if splits > 1:
            total = sums.sum(dim=0)
            out.copy_(total if bias is None else total.add_(bias))
