"""8-bit weights to dense ones: LLM.int8's rows, and blocks."""

from typing import Any

import torch

from tuneplan.kernels.bench import traffic
from tuneplan.kernels.bench.cases import DTYPES, Case
from tuneplan.kernels.bench.implementations.dequantize_4bit import dense
from tuneplan.kernels.bench.kernel import Implementation, Kernel, Prepared, compiled, needs_triton
from tuneplan.kernels.bench.weights import Int8Rows, int8_rows, packed_8bit
from tuneplan.kernels.dequantize_8bit import dequantize_8bit, dequantize_8bit_rows, reference, reference_rows
from tuneplan.kernels.packed import Packed8bit

_ROWS = "int8_rows"


def _inputs(case: Case, device: torch.device, seed: int) -> Int8Rows | Packed8bit:
    return int8_rows(case, device, seed) if case.format == _ROWS else packed_8bit(case, device, seed)


def _expected(case: Case, weight: Any) -> list[torch.Tensor]:
    kind = DTYPES[case.dtype]
    return [reference_rows(weight.data, weight.scale, kind) if case.format == _ROWS else reference(weight, kind)]


def _tuneplan(case: Case, weight: Any) -> Prepared:
    kind = DTYPES[case.dtype]
    if case.format == _ROWS:
        return lambda out: dequantize_8bit_rows(weight.data, weight.scale, dtype=kind, out=out)
    return lambda out: dequantize_8bit(weight.data, weight, dtype=kind, out=out)


def _bitsandbytes(case: Case, weight: Any) -> Prepared:
    kind = DTYPES[case.dtype]
    if case.format == _ROWS:
        # what MatMul8bitLt.backward runs (autograd/_functions.py, bitsandbytes 0.50)
        return lambda out: weight.data.to(kind, copy=True).mul_(weight.scale.unsqueeze(1).mul(1.0 / 127.0))
    from bitsandbytes.functional import QuantState, dequantize_blockwise

    state = QuantState(weight.absmax, code=weight.code, blocksize=weight.blocksize, dtype=kind)
    on_gpu = weight.device.type == "cuda"
    # its code for CPUs takes no buffer
    return lambda out: dequantize_blockwise(weight.data, state, out=out if on_gpu else None)


def _bitsandbytes_moved(case: Case) -> int:
    """Rows: a copy to the dtype, and a product in place."""
    return traffic.dequantized(case) + (2 * traffic.dense(case) if case.format == _ROWS else 0)


def _torch_compile(case: Case, weight: Any) -> Prepared:
    kind = DTYPES[case.dtype]
    if case.format == _ROWS:
        rows = compiled(case, lambda: lambda data, scale: reference_rows(data, scale, kind))
        return lambda out: rows(weight.data, weight.scale)

    def run(data: torch.Tensor, absmax: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        return reference(Packed8bit(data, absmax, code, case.blocksize, kind), kind)

    blocks = compiled(case, lambda: run)
    return lambda out: blocks(weight.data, weight.absmax, weight.code)


KERNEL = Kernel(
    inputs=_inputs,
    output=dense,
    expected=_expected,
    bound=lambda case: 0.0,
    minimum_bytes=traffic.dequantized,
    flops=lambda case: 0,
    implementations={
        "tuneplan": Implementation(_tuneplan, refuses=needs_triton, moved_bytes=traffic.dequantized, basis="one launch"),
        "bitsandbytes": Implementation(
            _bitsandbytes, ("bitsandbytes",), moved_bytes=_bitsandbytes_moved, basis="LLM.int8: its backward's copy and product"
        ),
        "torch_compile": Implementation(_torch_compile, bound=1e-4, compiles=True, basis="the reference, compiled"),
    },
)
