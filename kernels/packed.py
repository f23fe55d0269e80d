"""Quantized weights as the kernels take them: bitsandbytes' 4-bit and 8-bit formats, checked once, before any launch.

The format of bitsandbytes 0.50 (functional.py, `QuantState`): values in row-major order, two to a byte, the first in the high
half; one scale (`absmax`) for each run of `blocksize` values, which may span rows; with double quantization the scales are
bytes themselves, decoded as `code2[byte] * absmax2[block // blocksize2] + offset` in fp32, rounded after each step.
"""

from dataclasses import dataclass
from typing import Any

import torch

from tuneplan.kernels.errors import KernelInputError

BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Of bitsandbytes' 4-bit formats."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class NestedScales:
    """The second level of double quantization.

    Args:
        code: [256] fp32, the value of each byte.
        absmax: [ceil(blocks / blocksize)] fp32.
        offset: [] fp32, added to each decoded scale; a tensor, so that no launch waits for it.
        blocksize: scales that share one second scale; 256 in bitsandbytes.
    """

    code: torch.Tensor
    absmax: torch.Tensor
    offset: torch.Tensor
    blocksize: int


@dataclass(frozen=True, slots=True)
class Packed4bit:
    """A 4-bit weight.

    Args:
        data: [ceil(values / 2)] bytes, whatever dtype they are stored as (`quant_storage`), contiguous.
        absmax: [ceil(values / blocksize)]: fp32, or uint8 where `nested` is given.
        code: [16] fp32, the value of each half byte.
        blocksize: values that share a scale.
        shape: of the weight, [out_features, in_features] for a linear layer.
        dtype: that the weight had when it was quantized.
        nested: the second level of scales, or None.
    """

    data: torch.Tensor
    absmax: torch.Tensor
    code: torch.Tensor
    blocksize: int
    shape: torch.Size
    dtype: torch.dtype
    nested: NestedScales | None = None

    def __post_init__(self) -> None:
        """Raises KernelInputError for parts that do not belong together."""
        if not self.data.is_contiguous():
            raise KernelInputError("the packed weight is not contiguous; a view of it cannot be decoded: call .contiguous()")
        if self.blocksize not in BLOCKSIZES:
            raise KernelInputError(f"block size {self.blocksize} is not one of bitsandbytes' {', '.join(map(str, BLOCKSIZES))}")
        if self.dtype not in FLOATS:
            raise KernelInputError(f"a weight quantized from {self.dtype} is not known; only from fp32, fp16 and bf16")
        stored = self.data.numel() * self.data.element_size()
        needed = (self.values + 1) // 2
        # a wider quant_storage may be padded to whole elements
        if not needed <= stored < needed + self.data.element_size():
            raise KernelInputError(
                f"{tuple(self.shape)} values need {needed} packed bytes, the weight has {stored}; "
                "it belongs to another quant state"
            )
        _expect("code", self.code, (16,), torch.float32, self.data.device)
        blocks = -(-self.values // self.blocksize)
        if self.nested is None:
            _expect("absmax", self.absmax, (blocks,), torch.float32, self.data.device)
            return
        _expect("absmax", self.absmax, (blocks,), torch.uint8, self.data.device)
        size = self.nested.blocksize
        if size < 32 or size & (size - 1):
            raise KernelInputError(f"the block size of the nested scales is {size}; it must be a power of two from 32 on")
        _expect("state2.absmax", self.nested.absmax, (-(-blocks // size),), torch.float32, self.data.device)
        _expect("state2.code", self.nested.code, (256,), torch.float32, self.data.device)
        _expect("offset", self.nested.offset, (), torch.float32, self.data.device)

    @property
    def values(self) -> int:
        """Values of the weight."""
        return self.shape.numel()

    @property
    def device(self) -> torch.device:
        """Where the packed bytes lie."""
        return self.data.device

    @classmethod
    def of(cls, data: torch.Tensor, quant_state: Any) -> "Packed4bit":
        """A weight and its bitsandbytes `QuantState` (`weight.data`, `weight.quant_state` of a `Params4bit`).

        Raises KernelInputError where the two do not fit, or the state is not of a 4-bit weight.
        """
        if quant_state is None:
            raise KernelInputError("the weight has no quant_state: it is not quantized yet; move the layer to its device first")
        if quant_state.quant_type not in ("nf4", "fp4"):
            raise KernelInputError(f"quant_type {quant_state.quant_type!r} is not a 4-bit format; nf4 and fp4 are")
        if quant_state.shape is None or quant_state.dtype is None or quant_state.blocksize is None:
            raise KernelInputError("the quant state lacks shape, dtype or blocksize")
        nested = None
        if quant_state.state2 is not None:
            second = quant_state.state2
            nested = NestedScales(second.code, second.absmax, quant_state.offset, second.blocksize)
        # a weight of one row may lie transposed, as bitsandbytes hands it to its products
        flat = data.t() if data.dim() == 2 and data.shape[0] == 1 else data
        return cls(
            flat.detach(),
            quant_state.absmax,
            quant_state.code,
            quant_state.blocksize,
            torch.Size(quant_state.shape),
            quant_state.dtype,
            nested,
        )


def _expect(name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise KernelInputError(
            f"{name} must be {list(shape)} of {dtype}, but is {list(tensor.shape)} of {tensor.dtype}: "
            "weight and quant state do not belong together"
        )
    if tensor.device != device:
        raise KernelInputError(f"{name} lies on {tensor.device}, the packed weight on {device}; move the quant state too")
    if not tensor.is_contiguous():
        raise KernelInputError(f"{name} is not contiguous")
