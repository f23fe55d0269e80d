"""Quantized weights for the tests of kernels, on the GPU where there is one."""

from typing import Any

import bitsandbytes.functional as bnb
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def quantized(rows: int, columns: int, quant_type: str = "nf4", blocksize: int = 64, nested: bool = True, **options: Any) -> Any:
    """Packed bytes and quant state of random values, as bitsandbytes makes them."""
    torch.manual_seed(rows * columns + blocksize)
    dense = torch.randn(rows, columns, device=DEVICE)
    return bnb.quantize_4bit(dense, quant_type=quant_type, blocksize=blocksize, compress_statistics=nested, **options)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, so that -0.0 is not 0.0 and NaN is NaN."""
    return tensor.contiguous().view(torch.uint8)


def apart(rows: int, columns: int, dtype: torch.dtype, gap: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """A buffer of NaN with `gap` more columns, and the view of its first ones."""
    whole = torch.full((rows, columns + gap), float("nan"), dtype=dtype, device=DEVICE)
    return whole, whole[:, :columns]


def relative_error(result: torch.Tensor, exact: torch.Tensor) -> float:
    """Frobenius norm of the difference from fp64 values, by theirs."""
    return float((result.double() - exact).norm() / exact.norm())
