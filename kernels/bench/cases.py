"""What is timed: a kernel at a shape, with the storage format, the dtype and the tokens that it is given."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from tuneplan.kernels.bench.shapes import Shape, all_shapes, models

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FORMATS = ("nf4", "fp4", "int8_rows", "int8_blocks")
RANK = 16


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel on one weight.

    Args:
        kernel: a key of `registry.KERNELS`.
        shape: of the weight.
        format: nf4, fp4, int8_rows (LLM.int8) or int8_blocks (blockwise dynamic).
        nested: whether the scales of a 4-bit format are quantized too.
        blocksize: weights that share a scale; 0 for int8_rows.
        dtype: of activations and results.
        tokens: rows of activations; 0 where the kernel takes none.
        rank: of the adapter; 0 for none.
    """

    kernel: str
    shape: Shape
    format: str = "nf4"
    nested: bool = True
    blocksize: int = 64
    dtype: str = "bf16"
    tokens: int = 0
    rank: int = 0

    @property
    def label(self) -> str:
        """Every choice in a few words; two cases never share it."""
        words = [self.kernel, str(self.shape), self.format]
        if self.format in ("nf4", "fp4"):
            words.append("nested" if self.nested else "flat")
        if self.blocksize:
            words.append(f"block {self.blocksize}")
        words.append(self.dtype)
        words += [f"{self.tokens} tokens"] if self.tokens else []
        words += [f"rank {self.rank}"] if self.kernel == "lora_linear" else []
        return " ".join(words)

    def as_json(self) -> dict[str, Any]:
        """For a row."""
        return asdict(self)

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> "Case":
        """Of a row."""
        return cls(**{**table, "shape": Shape(**table["shape"])})


def dequantize_4bit(shapes: Iterable[Shape]) -> list[Case]:
    """NF4 with double quantization to bf16, which QLoRA runs."""
    return [Case("dequantize_4bit", shape) for shape in shapes]


def other_formats(shape: Shape) -> list[Case]:
    """The other formats and dtypes of 4-bit weights, at one shape."""
    case = Case("dequantize_4bit", shape)
    changes: Sequence[dict[str, Any]] = (
        {"format": "fp4"},
        {"nested": False},
        {"blocksize": 256},
        {"dtype": "fp16"},
        {"dtype": "fp32"},
    )
    return [replace(case, **change) for change in changes]


def dequantize_8bit(shapes: Iterable[Shape]) -> list[Case]:
    """LLM.int8's rows, and blocks of 256."""
    return [
        Case("dequantize_8bit", shape, form, nested=False, blocksize=block, dtype=dtype)
        for shape in shapes
        for form, block, dtype in (("int8_rows", 0, "bf16"), ("int8_blocks", 256, "bf16"))
    ]


def linear_4bit(shapes: Iterable[Shape], tokens: Iterable[int]) -> list[Case]:
    """Products of a few tokens."""
    numbers = list(tokens)
    return [Case("linear_4bit", shape, tokens=number) for shape in shapes for number in numbers]


def lora_linear(shapes: Iterable[Shape], tokens: Iterable[int]) -> list[Case]:
    """Forward and backward of an adapted linear layer, and of the same layer without its adapter."""
    numbers = list(tokens)
    return [Case("lora_linear", shape, tokens=number, rank=rank) for shape in shapes for number in numbers for rank in (RANK, 0)]


FIRST_CASES = 6
"""Those of `gpu_cases` that the goals are about. What has to be compiled is timed there alone: each compilation takes a while."""
_SQUARE, _WIDE, _LARGE = Shape(4096, 4096), Shape(11008, 4096), Shape(28672, 8192)


def gpu_cases() -> list[Case]:
    """All cases of a GPU, those that the goals are about first."""
    seven, seventy = models()["meta-llama/Llama-2-7b-hf"], models()["meta-llama/Llama-2-70b-hf"]
    first = [_WIDE, _LARGE, _SQUARE]
    return list(
        dict.fromkeys(
            [
                *dequantize_4bit(first),
                *lora_linear([_WIDE], [4096]),
                *linear_4bit([_WIDE], [1]),
                *dequantize_8bit([_WIDE]),
                *dequantize_4bit(all_shapes()),
                *lora_linear([_SQUARE, _WIDE, Shape(4096, 11008)], [1024, 4096]),
                *linear_4bit([_SQUARE, _WIDE, _LARGE], [1, 4, 16, 64]),
                *dequantize_8bit([*seven, *seventy]),
                *other_formats(_WIDE),
                *lora_linear([_LARGE], [1024, 4096]),
                *lora_linear([_WIDE], [16384]),
                *linear_4bit([_WIDE], [2, 8, 32]),
            ]
        )
    )


def cpu_cases(shapes: Sequence[Shape] = (Shape(256, 512), Shape(512, 1024))) -> list[Case]:
    """Small cases of every kernel, for a machine without a GPU."""
    return [
        *dequantize_4bit(shapes),
        *dequantize_8bit(shapes),
        *linear_4bit(shapes, [1, 4]),
        *lora_linear(shapes, [64]),
    ]


def cases_of(kernel: str, shapes: Sequence[Shape], tokens: Sequence[int]) -> list[Case]:
    """The cases of one kernel at chosen shapes; `tokens` where it takes any."""
    if kernel == "dequantize_4bit":
        return dequantize_4bit(shapes)
    if kernel == "dequantize_8bit":
        return dequantize_8bit(shapes)
    return linear_4bit(shapes, tokens or [1]) if kernel == "linear_4bit" else lora_linear(shapes, tokens or [1024])
