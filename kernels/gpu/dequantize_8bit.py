"""8-bit weights to dense ones in one launch: one byte read and one value written, nothing in between.

Fused multiply-add stays off, so that decoded scales are rounded as bitsandbytes rounds them.
"""

import torch
import triton
import triton.language as tl

from tuneplan.kernels.gpu.rounding import store
from tuneplan.kernels.gpu.scales import scales, weight_arguments
from tuneplan.kernels.packed import Packed8bit

VALUES = 8192
ROWS = 4
COLUMNS = 2048
WARPS = 4
"""Of the shapes tried, few instructions a value with registers for 24 warps a multiprocessor
(`python -m tuneplan.kernels.compiled_programs`); not timed on a GPU yet."""


@triton.jit
def _blockwise(
    data,
    absmax,
    code,
    code2,
    absmax2,
    offset,
    out,
    values,
    NESTED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK2: tl.constexpr,
    VALUES: tl.constexpr,
    GATHER: tl.constexpr,
):
    SCALES: tl.constexpr = VALUES // BLOCK
    start = tl.program_id(0).to(tl.int64) * VALUES
    left = tl.minimum(values - start, VALUES).to(tl.int32)
    at_V = tl.arange(0, VALUES)
    byte_V = tl.load(data + start + at_V, mask=at_V < left, other=0).to(tl.int32)
    scale_S = tl.arange(0, SCALES)
    absmax_S = scales(absmax, code2, absmax2, offset, start // BLOCK, scale_S, scale_S * BLOCK < left, NESTED, BLOCK2)
    value_V = tl.gather(tl.load(code + tl.arange(0, 256)), byte_V, 0) if GATHER else tl.load(code + byte_V)
    absmax_V = tl.reshape(tl.broadcast_to(absmax_S[:, None], (SCALES, BLOCK)), (VALUES,))
    store(out + start + at_V, value_V * absmax_V, at_V < left)


@triton.jit
def _rowwise(data, scale, out, rows, columns, row_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * ROWS
    row_R = tl.arange(0, ROWS)
    column_C = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there_R = row_R < rows - first
    there_RC = there_R[:, None] & (column_C < columns)[None, :]
    byte_RC = tl.load(data + first * columns + row_R.to(tl.int64)[:, None] * columns + column_C[None, :], mask=there_RC, other=0)
    # the constant is rounded to fp32 first, as a Python scalar beside an fp32 tensor is
    scale_R = tl.load(scale + first + row_R, mask=there_R, other=0.0) * 0.007874015718698502
    at_RC = out + first * row_stride + row_R.to(tl.int64)[:, None] * row_stride + column_C[None, :]
    store(at_RC, byte_RC.to(tl.float32) * scale_R[:, None], there_RC)


def dequantize_blockwise(
    packed: Packed8bit, out: torch.Tensor, values: int = VALUES, warps: int = WARPS, gather: bool = True
) -> None:
    """Decode a blockwise tensor into a contiguous `out` on the current stream.

    Args:
        packed: the tensor; checked already.
        out: of its shape; checked already.
        values: that a program takes: a power of two, at least the largest block (4096).
        warps: warps of a program.
        gather: the table of values lies in shared memory; else it is read through the first cache.
    """
    count = packed.values
    if not count:
        return
    weight, constants = weight_arguments(packed)
    with torch.cuda.device_of(packed.data):
        _blockwise[(triton.cdiv(count, values),)](
            *weight,
            out,
            count,
            **constants,
            VALUES=values,
            GATHER=gather,
            num_warps=warps,
            enable_fp_fusion=False,
        )


def dequantize_rows(
    data: torch.Tensor, scale: torch.Tensor, out: torch.Tensor, rows: int = ROWS, columns: int = COLUMNS, warps: int = WARPS
) -> None:
    """Decode an int8 weight with a scale a row into `out`, whose rows may be apart, on the current stream.

    Args:
        data: [rows, columns] int8, contiguous; checked already.
        scale: [rows] fp32, the largest magnitude of each row; checked already.
        out: [rows, columns]; checked already.
        rows: that a program takes, a power of two.
        columns: that a program takes, a power of two.
        warps: warps of a program.
    """
    if not data.numel():
        return
    count, width = data.shape
    with torch.cuda.device_of(data):
        _rowwise[(triton.cdiv(count, rows), triton.cdiv(width, columns))](
            data,
            scale,
            out,
            count,
            width,
            out.stride(0),
            ROWS=rows,
            COLUMNS=columns,
            num_warps=warps,
            enable_fp_fusion=False,
        )
