"""Both products of a LoRA adapter with the gradient of its output, the gradient read once.

Legend: M rows (tokens), N outputs, R rank, padded to a power of two from 16 on.

A program holds ROWS rows of S and of the sum for dS, and walks over its share of the columns in tiles of COLUMNS. A tile is
loaded once and multiplied twice: with B into dS, transposed with S into a partial dB. Partial sums are fp32, written to places of
their own and added up in the order of the programs: no atomics, the same bits each time. fp32 adapters over a gradient of bf16
are split into three bf16 parts, whose sum they are: as exact as fp32, at the speed of three bf16 products.

Partial sums cost 8 * rank / ROWS bytes an element, written and read; a second pass over the gradient costs an element's size.
"""

import torch
import triton
import triton.language as tl

from tuneplan.kernels.gpu.rounding import BY_HAND, rounded

ROWS, WARPS = 256, 8
SPLIT_ROWS, SPLIT_WARPS = 128, 4
COLUMNS = 64
"""Of the tiles tried (128 and 256 rows, 64 and 128 columns) those whose registers suffice up to rank 32, sm_80 to sm_100, with
the fewest instructions: 3 to 5 an element, 7 to 17 where fp32 is split. Compiled and counted; not timed on a GPU yet."""
PROGRAMS = 264
"""Two for each multiprocessor of an H200."""
COLUMNS_EACH = 512
"""Fewest columns of a program: each share of the columns writes a partial dS."""


@triton.jit
def _operand(values):
    """As products take it: the interpreter multiplies bf16 as whole numbers, and takes fp32 instead."""
    return values.to(tl.float32) if BY_HAND else values


@triton.jit
def _split(values):
    """fp32 as a sum of three bf16 values, eight bits each."""
    high = values.to(tl.bfloat16)
    rest = values - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
    return _operand(high), _operand(middle), _operand(low)


@triton.jit
def _one_pass(
    grad,
    B,
    S,
    dS,
    dB,
    rows,
    columns,
    grad_stride,
    S_stride,
    columns_each,
    scale,
    RANK: tl.constexpr,
    R: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    strip = tl.program_id(0)
    share = tl.program_id(1)
    row_M = strip.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    rank_R = tl.arange(0, R)
    there_M, there_R = row_M < rows, rank_R < RANK
    S_MR = tl.load(S + row_M[:, None] * S_stride + rank_R[None, :], mask=there_M[:, None] & there_R[None, :], other=0.0)
    if SPLIT:
        S_high_MR, S_middle_MR, S_low_MR = _split(S_MR)
    else:
        S_high_MR = _operand(S_MR)
    dS_MR = tl.zeros((ROWS, R), dtype=tl.float32)
    first = share * columns_each
    for start in range(first, tl.minimum(first + columns_each, columns), COLUMNS):
        column_N = start + tl.arange(0, COLUMNS)
        there_N = column_N < columns
        grad_MN = tl.load(
            grad + row_M[:, None] * grad_stride + column_N[None, :], mask=there_M[:, None] & there_N[None, :], other=0.0
        )
        at_NR = column_N.to(tl.int64)[:, None] * RANK + rank_R[None, :]
        there_NR = there_N[:, None] & there_R[None, :]
        B_NR = tl.load(B + at_NR, mask=there_NR, other=0.0)
        if SPLIT:
            grad_MN = _operand(grad_MN)
            B_high_NR, B_middle_NR, B_low_NR = _split(B_NR)
            # the smallest first
            dS_MR = tl.dot(grad_MN, B_low_NR, dS_MR)
            dS_MR = tl.dot(grad_MN, B_middle_NR, dS_MR)
            dS_MR = tl.dot(grad_MN, B_high_NR, dS_MR)
            dB_NR = tl.dot(tl.trans(grad_MN), S_low_MR)
            dB_NR = tl.dot(tl.trans(grad_MN), S_middle_MR, dB_NR)
            dB_NR = tl.dot(tl.trans(grad_MN), S_high_MR, dB_NR)
        else:
            grad_MN = rounded(grad_MN.to(tl.float32), B_NR.dtype) if BY_HAND else grad_MN.to(B_NR.dtype)
            dS_MR = tl.dot(grad_MN, _operand(B_NR), dS_MR)
            dB_NR = tl.dot(tl.trans(grad_MN), S_high_MR)
        tl.store(dB + strip.to(tl.int64) * columns * RANK + at_NR, dB_NR * scale, mask=there_NR)
    at_MR = (share.to(tl.int64) * rows + row_M)[:, None] * RANK + rank_R[None, :]
    tl.store(dS + at_MR, dS_MR * scale, mask=there_M[:, None] & there_R[None, :])


def both_products(
    grad_MN: torch.Tensor,
    B_NR: torch.Tensor,
    S_MR: torch.Tensor,
    scale: float,
    rows: int | None = None,
    columns: int = COLUMNS,
    warps: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`scale * grad @ B` in B's dtype and `scale * grad^T @ S` in fp32, on the current stream.

    Args:
        grad_MN: checked already; rounded to the dtype of a narrower B; bf16 if B is fp32.
        B_NR: checked already.
        S_MR: checked already; may be a part of wider rows.
        scale: of the adapter.
        rows: of a tile, a power of two; `ROWS`, or `SPLIT_ROWS` for an fp32 B.
        columns: of a tile, a power of two.
        warps: of a program; `WARPS`, or `SPLIT_WARPS`.
    """
    split = B_NR.dtype == torch.float32
    rows = rows or (SPLIT_ROWS if split else ROWS)
    grad_MN = grad_MN if grad_MN.stride(1) == 1 and grad_MN.stride(0) >= grad_MN.shape[1] else grad_MN.contiguous()
    S_MR = S_MR if S_MR.stride(1) == 1 else S_MR.contiguous()
    B_NR = B_NR.contiguous()
    M, N = grad_MN.shape
    rank = B_NR.shape[1]
    strips = triton.cdiv(M, rows)
    shares = min(triton.cdiv(PROGRAMS, strips), triton.cdiv(N, COLUMNS_EACH))
    columns_each = triton.cdiv(triton.cdiv(N, shares), columns) * columns
    shares = triton.cdiv(N, columns_each)
    dS_PMR = torch.empty((shares, M, rank), dtype=torch.float32, device=grad_MN.device)
    dB_PNR = torch.empty((strips, N, rank), dtype=torch.float32, device=grad_MN.device)
    with torch.cuda.device_of(grad_MN):
        _one_pass[(strips, shares)](
            grad_MN,
            B_NR,
            S_MR,
            dS_PMR,
            dB_PNR,
            M,
            N,
            grad_MN.stride(0),
            S_MR.stride(0),
            columns_each,
            scale,
            RANK=rank,
            R=max(16, triton.next_power_of_2(rank)),
            ROWS=rows,
            COLUMNS=columns,
            SPLIT=split,
            num_warps=warps or (SPLIT_WARPS if split else WARPS),
            enable_fp_fusion=True,
        )
    return _added_up(dS_PMR).to(B_NR.dtype), _added_up(dB_PNR)


def _added_up(parts: torch.Tensor) -> torch.Tensor:
    return parts[0] if parts.shape[0] == 1 else parts.sum(0)
