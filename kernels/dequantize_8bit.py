"""8-bit weights to dense ones, in one launch on a GPU: LLM.int8's rows and bitsandbytes' blockwise tables.

A byte is read and a value written: 3 bytes a weight for bf16. bitsandbytes 0.50 restores LLM.int8 weights in its backward pass
by a copy and a product in place (autograd/_functions.py, `MatMul8bitLt.backward`), 7 bytes a weight.
"""

from typing import Any

import torch

from tuneplan.kernels.backend import calls_directly, chosen
from tuneplan.kernels.errors import KernelInputError
from tuneplan.kernels.on_cpu import decode, decode_rows
from tuneplan.kernels.packed import PARTS, Packed8bit, check_out, decoded_scales, operator_parts, packed_8bit


def dequantize_8bit_rows(
    data: torch.Tensor,
    scale: torch.Tensor,
    *,
    dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """The dense weight of LLM.int8: `value * (scale of its row / 127)`, the bits of bitsandbytes' two steps.

    Args:
        data: [rows, columns] int8, contiguous (`CB` of `Int8Params`).
        scale: [rows] fp32, the largest magnitude of each row (`SCB`).
        dtype: of the result, fp32, fp16 or bf16; fp16 where neither it nor `out` is given.
        out: written and given back; its rows may be apart.
        backend: "auto", "triton" or "torch" (`tuneplan.kernels.backend`).

    Returns:
        [rows, columns]. It carries no gradient.

    Raises:
        KernelInputError: for wrong dtypes, shapes, devices and layouts.
        KernelUnavailableError: where `backend="triton"` cannot run.
    """
    if data.dim() != 2 or data.dtype != torch.int8 or not data.is_contiguous():
        raise KernelInputError(
            f"an LLM.int8 weight is a contiguous matrix of int8, given was {list(data.shape)} of {data.dtype},"
            f" strides {data.stride()}"
        )
    if scale.dtype != torch.float32 or scale.shape != data.shape[:1] or not scale.is_contiguous():
        raise KernelInputError(f"scales must be {list(data.shape[:1])} of fp32, but are {list(scale.shape)} of {scale.dtype}")
    if scale.device != data.device:
        raise KernelInputError(f"the scales lie on {scale.device}, the weight on {data.device}")
    kind = check_out(out, dtype, torch.float16, data.shape, data.device)
    result = out if out is not None else torch.empty(data.shape, dtype=kind, device=data.device)
    run = _run_rows if calls_directly() else torch.ops.tuneplan.dequantize_8bit_rows
    run(data.detach(), scale, result, backend)
    return result


def dequantize_8bit(
    data: torch.Tensor,
    quant_state: Any,
    *,
    dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """The tensor that a blockwise 8-bit one stands for: the bits of `bitsandbytes.functional.dequantize_blockwise`.

    Args:
        data: uint8 in the tensor's shape.
        quant_state: bitsandbytes' `QuantState`, nested or not; or the `Packed8bit` of the two, then `data` is its own.
        dtype: of the result, fp32, fp16 or bf16; that of `out`, else that of the quant state where it is left out.
        out: contiguous, written and given back.
        backend: "auto", "triton" or "torch" (`tuneplan.kernels.backend`).

    Returns:
        The tensor in the shape of `data`. It carries no gradient.

    Raises:
        KernelInputError: for parts that do not fit together, a dtype, device or layout that is not supported.
        KernelUnavailableError: where `backend="triton"` cannot run.
    """
    packed = quant_state if isinstance(quant_state, Packed8bit) else Packed8bit.of(data, quant_state)
    kind = check_out(out, dtype, packed.dtype, packed.shape, packed.device)
    if out is not None and not out.is_contiguous():
        raise KernelInputError(f"out has the strides {out.stride()}; a blockwise tensor is decoded into contiguous ones only")
    result = out if out is not None else torch.empty(packed.shape, dtype=kind, device=packed.device)
    if calls_directly():
        _run_blockwise(packed, result, backend)
        return result
    torch.ops.tuneplan.dequantize_8bit(*operator_parts(packed), result, backend)
    return result


def reference_rows(data: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """LLM.int8's weight in plain torch ops, [rows, columns]."""
    return (data.float() * _steps(scale)[:, None]).to(dtype)


def _steps(scale: torch.Tensor) -> torch.Tensor:
    """What a row's values are multiples of, [rows]."""
    return scale * (1.0 / 127.0)


def reference(packed: Packed8bit, dtype: torch.dtype) -> torch.Tensor:
    """A blockwise tensor in plain torch ops, in its shape."""
    blocks = decoded_scales(packed).repeat_interleave(packed.blocksize)[: packed.values]
    return (packed.code[packed.data.reshape(-1).int()] * blocks).to(dtype).reshape(packed.shape)


@torch.no_grad()
def _run_rows_in_torch(data: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> None:
    if data.device.type == "cpu":
        decode_rows(data, _steps(scale), out)
    else:
        out.copy_(reference_rows(data, scale, out.dtype))


@torch.no_grad()
def _run_blockwise_in_torch(packed: Packed8bit, out: torch.Tensor) -> None:
    if packed.device.type == "cpu":
        decode(packed.data, packed.code, decoded_scales(packed), packed.blocksize, out)
    else:
        out.copy_(reference(packed, out.dtype))


def _run_rows(data: torch.Tensor, scale: torch.Tensor, out: torch.Tensor, backend: str) -> None:
    if chosen(backend, data.device) == "torch":
        _run_rows_in_torch(data, scale, out)
        return
    from tuneplan.kernels.gpu.dequantize_8bit import dequantize_rows

    dequantize_rows(data, scale, out)


def _run_blockwise(packed: Packed8bit, out: torch.Tensor, backend: str) -> None:
    if chosen(backend, packed.device) == "torch":
        _run_blockwise_in_torch(packed, out)
        return
    from tuneplan.kernels.gpu.dequantize_8bit import dequantize_blockwise

    dequantize_blockwise(packed, out)


@torch.library.custom_op("tuneplan::dequantize_8bit_rows", mutates_args=("out",))
def _rows_op(data: torch.Tensor, scale: torch.Tensor, out: torch.Tensor, backend: str) -> None:
    _run_rows(data, scale, out, backend)


@_rows_op.register_fake
def _rows_fake(data: torch.Tensor, scale: torch.Tensor, out: torch.Tensor, backend: str) -> None:
    return None


@torch.library.custom_op(
    "tuneplan::dequantize_8bit", mutates_args=("out",), schema=f"({PARTS}, Tensor(a!) out, str backend) -> ()"
)
def _op(*given: Any) -> None:
    *parts, out, backend = given
    _run_blockwise(packed_8bit(parts, out.dtype), out, backend)


@_op.register_fake
def _fake(*given: Any) -> None:
    return None
