"""A few tokens times a 4-bit weight without a dense copy of it: generation, and evaluation at small batches.

Up to 64 tokens a decoded value is used too rarely to be written out first; beyond, decoding once and a plain matrix product are
faster, since every tile of tokens would decode the weight again.
"""

from typing import Any

import torch

from tuneplan.kernels.backend import calls_directly, chosen
from tuneplan.kernels.dequantize_4bit import dequantize_4bit
from tuneplan.kernels.errors import KernelInputError
from tuneplan.kernels.packed import FLOATS, PARTS, Packed4bit, operator_parts, packed_4bit

MOST_TOKENS = 64
"""That the fused programs take; more tokens decode the weight first."""


def linear_4bit(
    x: torch.Tensor, data: torch.Tensor, quant_state: Any, bias: torch.Tensor | None = None, *, backend: str = "auto"
) -> torch.Tensor:
    """`y = x W^T + bias` with a frozen 4-bit weight, for inference; it carries no gradient.

    On a GPU, up to 64 tokens run in one launch (two, and fp32 sums, where in_features are split); more tokens, and weights whose
    rows are not whole blocks, decode the weight and multiply. Products and sums are fp32 or those of the tensor cores, with
    values looked up in the dtype of x (in fp32 for one token): within 3e-3 (bf16), 4e-4 (fp16) and 1e-6 (fp32) of the exact
    product, in relative Frobenius norm.

    Args:
        x: [..., in_features], fp32, fp16 or bf16.
        data: the packed bytes.
        quant_state: bitsandbytes' `QuantState` of a matrix [out_features, in_features]; or a `Packed4bit`.
        bias: [out_features], or None.
        backend: "auto", "triton" or "torch" (`tuneplan.kernels.backend`).

    Returns:
        [..., out_features] in the dtype of x.

    Raises:
        KernelInputError: for wrong dtypes, shapes and devices.
        KernelUnavailableError: where `backend="triton"` cannot run.
    """
    packed = quant_state if isinstance(quant_state, Packed4bit) else Packed4bit.of(data, quant_state)
    if len(packed.shape) != 2:
        raise KernelInputError(f"the weight has the shape {list(packed.shape)}; a linear layer's is [out_features, in_features]")
    features, width = packed.shape
    if x.dtype not in FLOATS or x.dim() == 0 or x.shape[-1] != width:
        raise KernelInputError(f"x must be [..., {width}] of fp32, fp16 or bf16, but is {list(x.shape)} of {x.dtype}")
    if x.device != packed.device:
        raise KernelInputError(f"x lies on {x.device}, the weight on {packed.device}")
    if bias is not None and (bias.shape != (features,) or bias.device != x.device or bias.dtype not in FLOATS):
        raise KernelInputError(
            f"bias must be [{features}] of fp32, fp16 or bf16 on {x.device}, "
            f"but is {list(bias.shape)} of {bias.dtype} on {bias.device}"
        )
    rows = x.detach().reshape(-1, width).contiguous()
    fused = 0 < rows.shape[0] <= MOST_TOKENS and width % packed.blocksize == 0 and chosen(backend, x.device) == "triton"
    if not fused:
        weight = dequantize_4bit(data, packed, dtype=x.dtype, backend=backend)
        return torch.nn.functional.linear(x.detach(), weight, None if bias is None else bias.detach().to(x.dtype))
    out = torch.empty((rows.shape[0], features), dtype=x.dtype, device=x.device)
    added = None if bias is None else bias.detach().contiguous()
    if calls_directly():
        _run(rows, packed, added, out)
    else:
        torch.ops.tuneplan.linear_4bit(rows, *operator_parts(packed), added, out)
    return out.reshape(*x.shape[:-1], features)


def _run(rows: torch.Tensor, packed: Packed4bit, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    from tuneplan.kernels.gpu.linear_4bit import linear

    linear(rows, packed, bias, out)


@torch.library.custom_op(
    "tuneplan::linear_4bit", mutates_args=("out",), schema=f"(Tensor rows, {PARTS}, Tensor? bias, Tensor(a!) out) -> ()"
)
def _op(*given: Any) -> None:
    rows, *parts, bias, out = given
    _run(rows, packed_4bit(parts, (out.shape[1], rows.shape[1]), out.dtype), bias, out)


@_op.register_fake
def _fake(*given: Any) -> None:
    return None
