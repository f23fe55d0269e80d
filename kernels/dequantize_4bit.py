"""NF4 and FP4 weights to dense ones, in one launch on a GPU.

Legend: a weight has `values` in row-major order; see `tuneplan.kernels.packed` for the format.
"""

from collections.abc import Sequence
from typing import Any

import torch

from tuneplan.kernels.backend import calls_directly, chosen
from tuneplan.kernels.errors import KernelInputError
from tuneplan.kernels.packed import FLOATS, NestedScales, Packed4bit


def dequantize_4bit(
    data: torch.Tensor,
    quant_state: Any,
    *,
    dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """The dense weight that a 4-bit one stands for.

    Takes what `bitsandbytes.functional.dequantize_4bit` takes, and gives the same bits (on a GPU; its code for CPUs with AVX-512
    is wrong where rows are not whole blocks). Runs on the current stream, waits for nothing, can be captured into a CUDA
    graph, and compiles (`torch.compile(fullgraph=True)`). The result carries no gradient.

    Args:
        data: the packed bytes, [ceil(values / 2)] of any dtype.
        quant_state: bitsandbytes' `QuantState`, nested or not; or the `Packed4bit` of the two, then `data` is its own.
        dtype: of the result, fp32, fp16 or bf16; that of `out`, else that of the quant state where it is left out.
        out: written and given back; [rows, columns] as the weight; its rows may be apart (a part of a wider buffer).
        backend: "auto", "triton" or "torch" (`tuneplan.kernels.backend`).

    Returns:
        The weight in the quant state's shape.

    Raises:
        KernelInputError: for parts that do not fit together, a dtype, device or layout that is not supported.
        KernelUnavailableError: where `backend="triton"` cannot run.
    """
    packed = quant_state if isinstance(quant_state, Packed4bit) else Packed4bit.of(data, quant_state)
    kind = _kind(packed, dtype, out)
    if calls_directly():
        result = out if out is not None else torch.empty(packed.shape, dtype=kind, device=packed.device)
        _run(packed, result, backend)
        return result
    nested = packed.nested
    parts = (
        packed.data,
        packed.absmax,
        packed.code,
        nested and nested.code,
        nested and nested.absmax,
        nested and nested.offset,
        packed.blocksize,
        nested.blocksize if nested else 0,
        list(packed.shape),
    )
    if out is None:
        return torch.ops.tuneplan.dequantize_4bit(*parts, kind, backend)  # type: ignore[no-any-return]  # an op is Any
    torch.ops.tuneplan.dequantize_4bit_out(*parts, out, backend)
    return out


def reference(packed: Packed4bit, dtype: torch.dtype) -> torch.Tensor:
    """The same in plain torch ops, for any shape and device: what every other implementation must equal bit by bit.

    Args:
        packed: the weight.
        dtype: of the result.

    Returns:
        The weight in its shape. Holds 8 bytes a value for a moment.
    """
    count, nested = packed.values, packed.nested
    scale = packed.absmax
    if nested is not None:
        block = torch.arange(scale.numel(), device=scale.device)
        scale = nested.code[scale.long()] * nested.absmax[block // nested.blocksize]
        scale = scale + nested.offset
    byte = packed.data.reshape(-1).view(torch.uint8)[: (count + 1) // 2]
    nibble = torch.stack((byte >> 4, byte & 15), dim=1).reshape(-1)[:count]
    blocks = scale.repeat_interleave(packed.blocksize)[:count]
    return (packed.code[nibble.int()] * blocks).to(dtype).reshape(packed.shape)


def _kind(packed: Packed4bit, dtype: torch.dtype | None, out: torch.Tensor | None) -> torch.dtype:
    kind = dtype or (packed.dtype if out is None else out.dtype)
    if kind not in FLOATS:
        raise KernelInputError(f"a weight cannot be decoded to {kind}; to fp32, fp16 and bf16 it can")
    if out is None:
        return kind
    if out.dtype != kind:
        raise KernelInputError(f"out is {out.dtype}, asked for was {kind}; leave dtype out, or give an out of that dtype")
    if out.shape != packed.shape:
        raise KernelInputError(f"out has the shape {list(out.shape)}, the weight {list(packed.shape)}")
    if out.device != packed.device:
        raise KernelInputError(f"out lies on {out.device}, the weight on {packed.device}")
    if out.requires_grad:
        raise KernelInputError("out needs a gradient; a frozen weight is written without one: give a detached tensor")
    rows_apart = out.dim() == 2 and out.stride(1) == 1 and out.stride(0) >= out.shape[1]
    if not out.is_contiguous() and not rows_apart:
        raise KernelInputError(
            f"out has the strides {out.stride()}; values of a row must lie side by side, rows must not overlap"
        )
    return kind


def _run(packed: Packed4bit, out: torch.Tensor, backend: str) -> None:
    if chosen(backend, packed.device) == "torch":
        out.copy_(reference(packed, out.dtype))
        return
    from tuneplan.kernels.gpu.dequantize_4bit import dequantize

    dequantize(packed, out)


def _whole(
    data: torch.Tensor,
    absmax: torch.Tensor,
    code: torch.Tensor,
    code2: torch.Tensor | None,
    absmax2: torch.Tensor | None,
    offset: torch.Tensor | None,
    blocksize: int,
    blocksize2: int,
    shape: Sequence[int],
) -> Packed4bit:
    nested = None
    if code2 is not None and absmax2 is not None and offset is not None:
        nested = NestedScales(code2, absmax2, offset, blocksize2)
    return Packed4bit(data, absmax, code, blocksize, torch.Size(shape), torch.float32, nested)


@torch.library.custom_op("tuneplan::dequantize_4bit", mutates_args=())
def _op(
    data: torch.Tensor,
    absmax: torch.Tensor,
    code: torch.Tensor,
    code2: torch.Tensor | None,
    absmax2: torch.Tensor | None,
    offset: torch.Tensor | None,
    blocksize: int,
    blocksize2: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    backend: str,
) -> torch.Tensor:
    packed = _whole(data, absmax, code, code2, absmax2, offset, blocksize, blocksize2, shape)
    out = torch.empty(packed.shape, dtype=dtype, device=data.device)
    _run(packed, out, backend)
    return out


@_op.register_fake
def _fake(
    data: torch.Tensor,
    absmax: torch.Tensor,
    code: torch.Tensor,
    code2: torch.Tensor | None,
    absmax2: torch.Tensor | None,
    offset: torch.Tensor | None,
    blocksize: int,
    blocksize2: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    backend: str,
) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=data.device)


@torch.library.custom_op("tuneplan::dequantize_4bit_out", mutates_args=("out",))
def _op_out(
    data: torch.Tensor,
    absmax: torch.Tensor,
    code: torch.Tensor,
    code2: torch.Tensor | None,
    absmax2: torch.Tensor | None,
    offset: torch.Tensor | None,
    blocksize: int,
    blocksize2: int,
    shape: Sequence[int],
    out: torch.Tensor,
    backend: str,
) -> None:
    _run(_whole(data, absmax, code, code2, absmax2, offset, blocksize, blocksize2, shape), out, backend)


@_op_out.register_fake
def _fake_out(
    data: torch.Tensor,
    absmax: torch.Tensor,
    code: torch.Tensor,
    code2: torch.Tensor | None,
    absmax2: torch.Tensor | None,
    offset: torch.Tensor | None,
    blocksize: int,
    blocksize2: int,
    shape: Sequence[int],
    out: torch.Tensor,
    backend: str,
) -> None:
    return None
