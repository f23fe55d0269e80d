"""A few tokens times a 4-bit weight, the weight decoded inside: `y = x W^T`.

Legend: M tokens, N out_features, K in_features, W 32-bit words of eight values along K, S blocks that share a scale.

The vector program (one token) takes ROWS rows of the weight and walks along K: the eight values of a word are multiplied with
fp32 copies of x and added up before the word's scale is applied once. The matrix program (up to 64 tokens) makes the weight the
left operand of the tensor cores; even and odd values are two half products, so that nothing is interleaved, and the scale of a
block comes after its product. K is split where the rows alone do not fill the card; partial sums are added in a fixed order.

Values are looked up in other threads' registers, for one token as they are, for more in the type of x.
"""

import torch
import triton
import triton.language as tl

from tuneplan.kernels.gpu.lookup import table_of, values_of_bytes, values_of_words
from tuneplan.kernels.gpu.rounding import BY_HAND, rounded, store
from tuneplan.kernels.gpu.scales import scales, weight_arguments
from tuneplan.kernels.packed import Packed4bit

VECTOR_ROWS = 16
VECTOR_WORDS = 128
VECTOR_WARPS = 8
MATRIX_ROWS = 128
MATRIX_WARPS = 4
"""Of programs of up to 32 tokens, twice as many beyond. From counts of instructions and registers
(`python -m tuneplan.kernels.compiled_programs`); not timed on a GPU yet."""
PROGRAMS = 264
"""Of the matrix program at least, before K is no longer split: two for each multiprocessor of an H200. Of the vector program
half as many, before its rows are no longer halved."""
FEWEST_ROWS = 4
ADDED_VALUES = 512
"""Results that a program of the second launch adds up; with the default of four warps, one 128-bit load a thread and split."""


@triton.jit
def _four_of(x, column_W, half: tl.constexpr, there_W):
    """fp32 values 4 half to 4 half + 3 of those that belong to each word; 16-bit ones in one load."""
    kind: tl.constexpr = x.dtype.element_ty
    if kind == tl.float32:
        at_W = x + column_W * 8 + half * 4
        a_W = tl.load(at_W, mask=there_W, other=0.0)
        b_W = tl.load(at_W + 1, mask=there_W, other=0.0)
        c_W = tl.load(at_W + 2, mask=there_W, other=0.0)
        d_W = tl.load(at_W + 3, mask=there_W, other=0.0)
    else:
        all_W = tl.load(x.to(tl.pointer_type(tl.int64)) + column_W * 2 + half, mask=there_W, other=0)
        a_W = all_W.to(tl.int16).to(kind, bitcast=True).to(tl.float32)
        b_W = (all_W >> 16).to(tl.int16).to(kind, bitcast=True).to(tl.float32)
        c_W = (all_W >> 32).to(tl.int16).to(kind, bitcast=True).to(tl.float32)
        d_W = (all_W >> 48).to(tl.int16).to(kind, bitcast=True).to(tl.float32)
    return a_W, b_W, c_W, d_W


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
    SCALES: tl.constexpr = WORDS // BLOCK_WORDS if WORDS > BLOCK_WORDS else 1
    first = tl.program_id(0).to(tl.int64) * ROWS
    row_R = tl.arange(0, ROWS)
    there_R = row_R < features - first
    row_blocks = words // BLOCK_WORDS
    first_block = first * row_blocks
    table = table_of(code)
    sum_RW = tl.zeros((ROWS, WORDS), dtype=tl.float32)
    for start in range(0, words, WORDS):
        # a thread takes two words side by side, not four, so that what it reads of x serves twice as many rows
        column_W = tl.max_contiguous(start + tl.arange(0, WORDS), 2)
        there_W = column_W < words
        at_RW = (row_R * words)[:, None] + column_W[None, :]
        there_RW = there_R[:, None] & there_W[None, :]
        packed_RW = tl.load(data.to(tl.pointer_type(tl.int32)) + first * words + at_RW, mask=there_RW, other=0)
        values = values_of_words(packed_RW, table)
        part_RW = tl.zeros((ROWS, WORDS), dtype=tl.float32)
        for half in tl.static_range(2):
            x4 = _four_of(x, column_W, half, there_W)
            for place in tl.static_range(4):
                part_RW += x4[place][None, :] * values[4 * half + place]
        block_S = start // BLOCK_WORDS + tl.arange(0, SCALES)
        at_RS = (row_R * row_blocks)[:, None] + block_S[None, :]
        there_RS = there_R[:, None] & (block_S < row_blocks)[None, :]
        absmax_RS = scales(absmax, code2, absmax2, offset, first_block, at_RS, there_RS, NESTED, BLOCK2)
        if SCALES > 1:
            absmax_RSW = tl.broadcast_to(absmax_RS[:, :, None], (ROWS, SCALES, BLOCK_WORDS))
            sum_RW += part_RW * tl.reshape(absmax_RSW, (ROWS, WORDS))
        else:
            sum_RW += part_RW * absmax_RS
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
    table = rounded(table_of(code), kind) if BY_HAND else table_of(code)
    sum_NM = tl.zeros((ROWS, TOKENS), dtype=tl.float32)
    begin = tl.program_id(1) * split_blocks * VALUES
    end = tl.minimum(begin + split_blocks * VALUES, width)
    first_block = first * width // BLOCK
    for start in range(begin, end, VALUES):
        at_NK = row_N[:, None] * (width // 2) + (start // 2 + pair_K)[None, :]
        byte_NK = tl.load(data + first * (width // 2) + at_NK, mask=there_N[:, None], other=0)
        high_NK, low_NK = values_of_bytes(byte_NK, table, x)
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


@triton.jit
def _added_up(sums, bias, out, splits, values, features, BIAS: tl.constexpr, VALUES: tl.constexpr):
    at_V = tl.program_id(0).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    there_V = at_V < values
    sum_V = tl.zeros((VALUES,), dtype=tl.float32)
    part_V = sums + at_V
    for _ in range(splits):
        sum_V += tl.load(part_V, mask=there_V, other=0.0)
        part_V += values
    if BIAS:
        sum_V += tl.load(bias + at_V % features, mask=there_V, other=0.0).to(tl.float32)
    store(out + at_V, sum_V, there_V)


def vector_tile(features: int, row_words: int) -> tuple[int, int]:
    """Rows, and words of each, that a program of one token takes in a turn.

    Where rows alone do not fill the card it takes half of them and goes twice as far along K: the same words a thread, in fewer
    turns, each of which waits for the memory.

    Args:
        features: out_features.
        row_words: 32-bit words of a row.
    """
    rows, words = VECTOR_ROWS, VECTOR_WORDS
    while rows > FEWEST_ROWS and triton.cdiv(features, rows) < PROGRAMS // 2:
        rows //= 2
        words = words if words >= row_words else 2 * words
    return rows, words


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
    # read four bytes at a time, and four values
    data = data if data.data_ptr() % 4 == 0 else data.clone()
    x = x if x.data_ptr() % 8 == 0 else x.clone()
    tensors = (data, *scaling, x, packed.code if bias is None else bias)
    constants["BIAS"] = bias is not None
    with torch.cuda.device_of(x):
        if tokens == 1:
            rows, words = vector_tile(features, width // 8)
            _vector[(triton.cdiv(features, rows),)](
                *tensors,
                out,
                features,
                width // 8,
                **constants,
                ROWS=rows,
                WORDS=words,
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
            _added_up[(triton.cdiv(out.numel(), ADDED_VALUES),)](
                sums, tensors[-1], out, splits, out.numel(), features, BIAS=bias is not None, VALUES=ADDED_VALUES
            )
