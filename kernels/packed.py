"""Quantized weights as the kernels take them: bitsandbytes' 4-bit and 8-bit formats, checked once, before any launch.

The format of bitsandbytes 0.50 (functional.py, `QuantState`): values in row-major order, two to a byte, the first in the high
half; one scale (`absmax`) for each run of `blocksize` values, which may span rows; with double quantization the scales are
bytes themselves, decoded as `code2[byte] * absmax2[block // blocksize2] + offset` in fp32, rounded after each step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tuneplan.kernels.errors import KernelInputError

BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Of bitsandbytes' formats."""
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

    @classmethod
    def of(cls, quant_state: Any) -> "NestedScales | None":
        """Those of a bitsandbytes `QuantState`, or None where its scales are not quantized."""
        second = quant_state.state2
        return None if second is None else cls(second.code, second.absmax, quant_state.offset, second.blocksize)


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
        _check_scales(self)

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
        # a weight of one row may lie transposed, as bitsandbytes hands it to its products
        flat = data.t() if data.dim() == 2 and data.shape[0] == 1 else data
        return cls(
            flat.detach(),
            quant_state.absmax,
            quant_state.code,
            quant_state.blocksize,
            torch.Size(quant_state.shape),
            quant_state.dtype,
            NestedScales.of(quant_state),
        )


@dataclass(frozen=True, slots=True)
class Packed8bit:
    """A tensor of bitsandbytes' blockwise 8-bit format ("dynamic" or any other table of 256 values).

    Args:
        data: uint8, in the shape of the tensor, contiguous.
        absmax: [ceil(values / blocksize)]: fp32, or uint8 where `nested` is given.
        code: [256] fp32, the value of each byte.
        blocksize: values that share a scale.
        dtype: that the tensor had when it was quantized.
        nested: the second level of scales, or None.
    """

    data: torch.Tensor
    absmax: torch.Tensor
    code: torch.Tensor
    blocksize: int
    dtype: torch.dtype
    nested: NestedScales | None = None

    def __post_init__(self) -> None:
        """Raises KernelInputError for parts that do not belong together."""
        if self.data.dtype != torch.uint8 or not self.data.is_contiguous():
            raise KernelInputError(f"8-bit data must be contiguous uint8, but is {self.data.dtype}, strides {self.data.stride()}")
        if self.blocksize not in BLOCKSIZES:
            raise KernelInputError(f"block size {self.blocksize} is not one of bitsandbytes' {', '.join(map(str, BLOCKSIZES))}")
        if self.dtype not in FLOATS:
            raise KernelInputError(f"a tensor quantized from {self.dtype} is not known; only from fp32, fp16 and bf16")
        _expect("code", self.code, (256,), torch.float32, self.data.device)
        _check_scales(self)

    @property
    def values(self) -> int:
        """Values of the tensor."""
        return self.data.numel()

    @property
    def shape(self) -> torch.Size:
        """Of the tensor."""
        return self.data.shape

    @property
    def device(self) -> torch.device:
        """Where the bytes lie."""
        return self.data.device

    @classmethod
    def of(cls, data: torch.Tensor, quant_state: Any) -> "Packed8bit":
        """Bytes and the `QuantState` that `bitsandbytes.functional.quantize_blockwise` gave with them.

        Raises KernelInputError where the two do not fit, or the state is that of a 4-bit weight.
        """
        if quant_state is None or quant_state.quant_type is not None:
            raise KernelInputError("this is not the quant state of a blockwise 8-bit tensor; dequantize_4bit takes nf4 and fp4")
        dtype = quant_state.dtype or torch.float32
        return cls(
            data.detach(), quant_state.absmax, quant_state.code, quant_state.blocksize, dtype, NestedScales.of(quant_state)
        )


PARTS = "Tensor data, Tensor absmax, Tensor code, int blocksize, Tensor? code2, Tensor? absmax2, Tensor? offset, int blocksize2"
"""What an operator takes in place of a packed weight, in torch's words."""


def operator_parts(packed: Packed4bit | Packed8bit) -> tuple[Any, ...]:
    """A packed weight as PARTS."""
    nested = packed.nested
    second = (nested.code, nested.absmax, nested.offset, nested.blocksize) if nested else (None, None, None, 0)
    return (packed.data, packed.absmax, packed.code, packed.blocksize, *second)


def packed_4bit(parts: Sequence[Any], shape: Sequence[int], dtype: torch.dtype) -> Packed4bit:
    """A 4-bit weight from PARTS."""
    data, absmax, code, blocksize, *second = parts
    return Packed4bit(data, absmax, code, blocksize, torch.Size(shape), dtype, _nested(second))


def packed_8bit(parts: Sequence[Any], dtype: torch.dtype) -> Packed8bit:
    """A blockwise 8-bit tensor from PARTS."""
    data, absmax, code, blocksize, *second = parts
    return Packed8bit(data, absmax, code, blocksize, dtype, _nested(second))


def _nested(second: Sequence[Any]) -> NestedScales | None:
    return None if second[0] is None else NestedScales(*second)


def _check_scales(packed: Packed4bit | Packed8bit) -> None:
    blocks = -(-packed.values // packed.blocksize)
    if packed.nested is None:
        _expect("absmax", packed.absmax, (blocks,), torch.float32, packed.device)
        return
    _expect("absmax", packed.absmax, (blocks,), torch.uint8, packed.device)
    size = packed.nested.blocksize
    if size < 32 or size & (size - 1):
        raise KernelInputError(f"the block size of the nested scales is {size}; it must be a power of two from 32 on")
    _expect("state2.absmax", packed.nested.absmax, (-(-blocks // size),), torch.float32, packed.device)
    _expect("state2.code", packed.nested.code, (256,), torch.float32, packed.device)
    _expect("offset", packed.nested.offset, (), torch.float32, packed.device)


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


def decoded_scales(packed: Packed4bit | Packed8bit) -> torch.Tensor:
    """fp32 scales of all blocks, [ceil(values / blocksize)], in plain torch: each step of double quantization rounded."""
    nested = packed.nested
    if nested is None:
        return packed.absmax
    block = torch.arange(packed.absmax.numel(), device=packed.device)
    return nested.code[packed.absmax.long()] * nested.absmax[block // nested.blocksize] + nested.offset


def check_out(
    out: torch.Tensor | None, dtype: torch.dtype | None, own: torch.dtype, shape: torch.Size, device: torch.device
) -> torch.dtype:
    """The dtype of a result, from what was asked for, what `out` has, and the weight's own.

    Raises KernelInputError for a dtype that nothing decodes to, and for an `out` of another dtype, shape, device or a
    layout that cannot be written.
    """
    kind = dtype or (own if out is None else out.dtype)
    if kind not in FLOATS:
        raise KernelInputError(f"a weight cannot be decoded to {kind}; to fp32, fp16 and bf16 it can")
    if out is None:
        return kind
    if out.dtype != kind:
        raise KernelInputError(f"out is {out.dtype}, asked for was {kind}; leave dtype out, or give an out of that dtype")
    if out.shape != shape:
        raise KernelInputError(f"out has the shape {list(out.shape)}, the weight {list(shape)}")
    if out.device != device:
        raise KernelInputError(f"out lies on {out.device}, the weight on {device}")
    if out.requires_grad:
        raise KernelInputError("out needs a gradient; a frozen weight is written without one: give a detached tensor")
    rows_apart = out.dim() == 2 and out.stride(1) == 1 and out.stride(0) >= out.shape[1]
    if not out.is_contiguous() and not rows_apart:
        raise KernelInputError(
            f"out has the strides {out.stride()}; values of a row must lie side by side, rows must not overlap"
        )
    return kind
