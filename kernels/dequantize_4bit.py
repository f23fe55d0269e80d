"""NF4 and FP4 weights to dense ones, in one launch on a GPU.

Legend: a weight has `values` in row-major order; see `tuneplan.kernels.packed` for the format.
"""

from typing import Any

import torch

from tuneplan.kernels.backend import calls_directly, chosen
from tuneplan.kernels.on_cpu import decode
from tuneplan.kernels.packed import PARTS, Packed4bit, check_out, decoded_scales, operator_parts, packed_4bit


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
    kind = check_out(out, dtype, packed.dtype, packed.shape, packed.device)
    result = out if out is not None else torch.empty(packed.shape, dtype=kind, device=packed.device)
    if calls_directly():
        _run(packed, result, backend)
        return result
    torch.ops.tuneplan.dequantize_4bit(*operator_parts(packed), list(packed.shape), result, backend)
    return result


def reference(packed: Packed4bit, dtype: torch.dtype) -> torch.Tensor:
    """The same in plain torch ops, for any shape and device: what every other implementation must equal bit by bit.

    Args:
        packed: the weight.
        dtype: of the result.

    Returns:
        The weight in its shape. Holds 4 bytes a value for a moment, and 2 for the indices; twice as many where the last block
        is not full.
    """
    count, size = packed.values, packed.blocksize
    byte = packed.data.reshape(-1).view(torch.uint8)[: (count + 1) // 2]
    values = torch.nn.functional.embedding(byte.int(), _pairs(packed.code)).reshape(-1)[:count]
    scales = decoded_scales(packed)
    full = count % size == 0
    values = values.view(-1, size) * scales[:, None] if full else values * scales.repeat_interleave(size)[:count]
    return values.to(dtype).reshape(packed.shape)


def _pairs(code: torch.Tensor) -> torch.Tensor:
    """[256, 2]: the two values that each byte stands for."""
    byte = torch.arange(256, device=code.device)
    return torch.stack((code[byte >> 4], code[byte & 15]), dim=1)


@torch.no_grad()
def _run_in_torch(packed: Packed4bit, out: torch.Tensor) -> None:
    if packed.device.type == "cpu" and out.is_contiguous():
        decode(packed.data, _pairs(packed.code), decoded_scales(packed), packed.blocksize, out)
    else:
        out.copy_(reference(packed, out.dtype))


def _run(packed: Packed4bit, out: torch.Tensor, backend: str) -> None:
    if chosen(backend, packed.device) == "torch":
        _run_in_torch(packed, out)
        return
    from tuneplan.kernels.gpu.dequantize_4bit import dequantize

    dequantize(packed, out)


@torch.library.custom_op(
    "tuneplan::dequantize_4bit", mutates_args=("out",), schema=f"({PARTS}, int[] shape, Tensor(a!) out, str backend) -> ()"
)
def _op(*given: Any) -> None:
    *parts, shape, out, backend = given
    _run(packed_4bit(parts, shape, out.dtype), out, backend)


@_op.register_fake
def _fake(*given: Any) -> None:
    return None
