"""Random quantized weights, made in place: any shape in a moment, with or without bitsandbytes.

Random bytes are a valid weight of every format. Scales are drawn so that values have about the size of a trained layer's.
"""

from dataclasses import dataclass
from typing import Any

import torch

from tuneplan.kernels.bench.cases import DTYPES, Case
from tuneplan.kernels.packed import NestedScales, Packed4bit, Packed8bit

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The values of 4-bit NormalFloat: Dettmers et al. 2023, QLoRA (arXiv 2305.14314), appendix E."""
FP4 = (0.0, 0.0052083333, 0.6666667, 1.0, 0.3333333, 0.5, 0.1666667, 0.25)
"""The positive values of bitsandbytes' FP4; the other half are their negatives (functional.py, `get_4bit_type`)."""
NESTED_BLOCK = 256
_TABLES = {"nf4": NF4, "fp4": (*FP4, *(-value for value in FP4))}
_OFFSET = 0.04


@dataclass(frozen=True, slots=True)
class Int8Rows:
    """An LLM.int8 weight: [rows, columns] int8, and [rows] fp32."""

    data: torch.Tensor
    scale: torch.Tensor


def packed_4bit(case: Case, device: torch.device, seed: int) -> Packed4bit:
    """A random 4-bit weight of a case's shape and format."""
    draw = _Draw(device, seed)
    count = case.shape.weights
    blocks = -(-count // case.blocksize)
    nested = None
    absmax = draw.uniform(blocks, 0.02, 0.06)
    if case.nested:
        absmax = draw.bytes(blocks)
        nested = NestedScales(
            torch.linspace(-1, 1, 256, device=device),
            draw.uniform(-(-blocks // NESTED_BLOCK), 0.01, 0.02),
            torch.tensor(_OFFSET, device=device),
            NESTED_BLOCK,
        )
    return Packed4bit(
        draw.bytes((count + 1) // 2)[:, None],
        absmax,
        torch.tensor(_TABLES[case.format], device=device),
        case.blocksize,
        torch.Size((case.shape.out_features, case.shape.in_features)),
        DTYPES[case.dtype],
        nested,
    )


def packed_8bit(case: Case, device: torch.device, seed: int) -> Packed8bit:
    """A random blockwise 8-bit weight."""
    draw = _Draw(device, seed)
    shape = (case.shape.out_features, case.shape.in_features)
    return Packed8bit(
        draw.bytes(case.shape.weights).reshape(shape),
        draw.uniform(-(-case.shape.weights // case.blocksize), 0.02, 0.06),
        torch.linspace(-1, 1, 256, device=device),
        case.blocksize,
        DTYPES[case.dtype],
    )


def int8_rows(case: Case, device: torch.device, seed: int) -> Int8Rows:
    """A random LLM.int8 weight."""
    draw = _Draw(device, seed)
    shape = (case.shape.out_features, case.shape.in_features)
    return Int8Rows(draw.bytes(case.shape.weights).reshape(shape).view(torch.int8), draw.uniform(shape[0], 0.05, 0.1))


def normal(shape: tuple[int, ...], dtype: str, device: torch.device, seed: int, size: float = 1.0) -> torch.Tensor:
    """Values around 0."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device, dtype=DTYPES[dtype]) * size


def bitsandbytes_state(packed: Packed4bit, kind: str) -> Any:
    """The `QuantState` of bitsandbytes for a 4-bit weight. Raises ImportError where it is not installed."""
    from bitsandbytes.functional import QuantState

    nested = packed.nested
    second = QuantState(nested.absmax, code=nested.code, blocksize=nested.blocksize, dtype=torch.float32) if nested else None
    return QuantState(
        packed.absmax,
        packed.shape,
        packed.code,
        packed.blocksize,
        kind,
        packed.dtype,
        nested.offset if nested else None,
        second,
    )


class _Draw:
    """Random tensors on a device."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)

    def bytes(self, count: int) -> torch.Tensor:
        return torch.randint(0, 256, (count,), dtype=torch.uint8, device=self.device, generator=self.generator)

    def uniform(self, count: int, least: float, most: float) -> torch.Tensor:
        return torch.rand(count, device=self.device, generator=self.generator) * (most - least) + least
