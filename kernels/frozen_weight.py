"""The frozen weight under a LoRA adapter: dense, 4-bit or LLM.int8, taken apart for autograd and decoded for a product.

Autograd keeps the parts as they are stored. The dense weight exists while a product reads it, and no longer.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from tuneplan.kernels.dequantize_4bit import dequantize_4bit
from tuneplan.kernels.dequantize_8bit import dequantize_8bit_rows
from tuneplan.kernels.errors import KernelInputError
from tuneplan.kernels.packed import FLOATS, NestedScales, Packed4bit

DENSE = (*FLOATS, torch.float64)
"""Dtypes of a dense weight; fp64 is for checks of gradients."""


@dataclass(frozen=True, slots=True)
class Rows8bit:
    """A weight of LLM.int8.

    Args:
        data: [out_features, in_features] int8, contiguous (bitsandbytes' `CB`).
        scale: [out_features] fp32, the largest magnitude of each row (`SCB`).
    """

    data: torch.Tensor
    scale: torch.Tensor

    def __post_init__(self) -> None:
        """Raises KernelInputError for parts that do not belong together."""
        if self.data.dim() != 2 or self.data.dtype != torch.int8 or not self.data.is_contiguous():
            raise KernelInputError(
                f"an LLM.int8 weight is a contiguous matrix of int8, given was {list(self.data.shape)} of {self.data.dtype}"
            )
        if self.scale.dtype != torch.float32 or self.scale.shape != self.data.shape[:1]:
            raise KernelInputError(
                f"scales must be {list(self.data.shape[:1])} of fp32, but are {list(self.scale.shape)} of {self.scale.dtype}"
            )
        if self.scale.device != self.data.device:
            raise KernelInputError(f"the scales lie on {self.scale.device}, the weight on {self.data.device}")

    @property
    def shape(self) -> torch.Size:
        """Of the weight, [out_features, in_features]."""
        return self.data.shape

    @property
    def device(self) -> torch.device:
        """Where the bytes lie."""
        return self.data.device


Weight = torch.Tensor | Packed4bit | Rows8bit
"""[out_features, in_features], in any of the forms."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a weight is beside its tensors.

    Args:
        form: how it is stored.
        shape: [out_features, in_features].
        parts: how many tensors it has.
        blocksize: of 4-bit weights.
        blocksize2: of nested scales, 0 without.
    """

    form: Literal["dense", "4bit", "8bit"]
    shape: tuple[int, int]
    parts: int
    blocksize: int = 0
    blocksize2: int = 0


def checked(weight: Any) -> Weight:
    """The weight, if it is one that a LoRA linear can stand on.

    Raises:
        KernelInputError: for another type, a dtype that is not known, a weight that is trained, or one that is no matrix.
    """
    if not isinstance(weight, Weight):
        raise KernelInputError(
            f"a frozen weight is a dense tensor, a Packed4bit or a Rows8bit, not {type(weight).__name__}; "
            "Packed4bit.of(weight.data, weight.quant_state) takes one of bitsandbytes"
        )
    if len(weight.shape) != 2:
        raise KernelInputError(f"a linear layer's weight is [out_features, in_features], this one {list(weight.shape)}")
    if isinstance(weight, torch.Tensor):
        if weight.dtype not in DENSE:
            raise KernelInputError(f"a dense weight of {weight.dtype} is not supported: fp32, fp16, bf16 and fp64 are")
        if weight.requires_grad:
            raise KernelInputError("the base weight needs a gradient; a LoRA linear keeps it frozen: call requires_grad_(False)")
    return weight


def taken_apart(weight: Weight) -> tuple[Layout, list[torch.Tensor]]:
    """A weight's layout and its tensors, in the order that `put_together` takes."""
    shape = (weight.shape[0], weight.shape[1])
    if isinstance(weight, torch.Tensor):
        return Layout("dense", shape, 1), [weight]
    if isinstance(weight, Rows8bit):
        return Layout("8bit", shape, 2), [weight.data, weight.scale]
    parts = [weight.data, weight.absmax, weight.code]
    nested = weight.nested
    if nested is not None:
        parts += [nested.code, nested.absmax, nested.offset]
    return Layout("4bit", shape, len(parts), weight.blocksize, nested.blocksize if nested else 0), parts


def put_together(layout: Layout, parts: list[torch.Tensor]) -> Weight:
    """The weight again."""
    if layout.form == "dense":
        return parts[0]
    if layout.form == "8bit":
        return Rows8bit(parts[0], parts[1])
    nested = NestedScales(parts[3], parts[4], parts[5], layout.blocksize2) if layout.blocksize2 else None
    return Packed4bit(parts[0], parts[1], parts[2], layout.blocksize, torch.Size(layout.shape), torch.float32, nested)


def decoded(weight: Weight, dtype: torch.dtype, backend: str) -> torch.Tensor:
    """[out_features, in_features] in a dtype; a dense weight of that dtype itself."""
    if isinstance(weight, torch.Tensor):
        return weight.to(dtype)
    if isinstance(weight, Rows8bit):
        return dequantize_8bit_rows(weight.data, weight.scale, dtype=dtype, backend=backend)
    return dequantize_4bit(weight.data, weight, dtype=dtype, backend=backend)
