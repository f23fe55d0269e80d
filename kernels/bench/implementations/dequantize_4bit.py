"""4-bit weights to dense ones."""

from typing import Any

import torch

from tuneplan.kernels.bench import traffic
from tuneplan.kernels.bench.cases import DTYPES, Case
from tuneplan.kernels.bench.implementations import torchao, unsloth
from tuneplan.kernels.bench.kernel import Implementation, Kernel, Prepared, compiled, needs_triton
from tuneplan.kernels.bench.weights import bitsandbytes_state, packed_4bit
from tuneplan.kernels.dequantize_4bit import dequantize_4bit, reference
from tuneplan.kernels.packed import NestedScales, Packed4bit

_LARGEST_OF_BITSANDBYTES = 2**31 - 1
REQUANTIZED = 0.12
"""Bound of an implementation that quantizes the weight again: the error of NF4 itself is 9 % (QLoRA, normal values)."""
CONTRACTED = 1e-4
"""Bound of the compiled reference: its compiler may contract products and sums, which moves a scale by one rounding."""


def bitsandbytes_refuses(case: Case, device: torch.device) -> str | None:
    """Cases that bitsandbytes 0.50 gets wrong, or cannot launch."""
    if device.type == "cpu" and case.shape.in_features % case.blocksize:
        return "bitsandbytes' code for CPUs is wrong where rows are not whole blocks"
    if case.shape.weights > _LARGEST_OF_BITSANDBYTES:
        return "bitsandbytes cannot launch for 2^31 values and more"
    return None


def bitsandbytes_moved(case: Case) -> int:
    """Three launches: scales to fp32, the offset added to them, the weight; with flat scales one."""
    blocks = -(-case.shape.weights // case.blocksize)
    return traffic.dequantized(case) + (16 * blocks if case.nested else 0)


def only_nested_nf4(case: Case, device: torch.device) -> str | None:
    """Formats that Unsloth runs."""
    return None if case.format == "nf4" and case.nested else "it decodes NF4 with nested scales only"


def only_torchaos_format(case: Case, device: torch.device) -> str | None:
    """Formats that torchao has a like of."""
    same = case.format == "nf4" and case.nested and case.blocksize == 64
    return None if same else "its NF4 has blocks of 64 and nested scales only"


def _tuneplan(case: Case, packed: Packed4bit) -> Prepared:
    kind = DTYPES[case.dtype]
    return lambda out: dequantize_4bit(packed.data, packed, dtype=kind, out=out)


def _bitsandbytes(case: Case, packed: Packed4bit) -> Prepared:
    from bitsandbytes.functional import dequantize_4bit as run

    state = bitsandbytes_state(packed, case.format)
    on_gpu = packed.device.type == "cuda"
    # its code for CPUs takes no buffer
    return lambda out: run(packed.data, state, out=out if on_gpu else None)


def decoder(packed: Packed4bit, dtype: torch.dtype) -> tuple[Any, tuple[torch.Tensor, ...]]:
    """The reference as a function of tensors, for torch.compile, with its arguments."""
    nested = packed.nested
    blocksize, second, shape = packed.blocksize, nested.blocksize if nested else 0, packed.shape

    def run(data: torch.Tensor, absmax: torch.Tensor, code: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        scales = NestedScales(rest[0], rest[1], rest[2], second) if rest else None
        return reference(Packed4bit(data, absmax, code, blocksize, shape, dtype, scales), dtype)

    more = (nested.code, nested.absmax, nested.offset) if nested else ()
    return run, (packed.data, packed.absmax, packed.code, *more)


def _torch_compile(case: Case, packed: Packed4bit) -> Prepared:
    run, tensors = decoder(packed, DTYPES[case.dtype])
    fast = compiled(case, lambda: run)
    return lambda out: fast(*tensors)


def _torchao(case: Case, packed: Packed4bit) -> Prepared:
    weight = torchao.nf4(reference(packed, DTYPES[case.dtype]))
    return lambda out: weight.get_original_weight()


def _unsloth(case: Case, packed: Packed4bit) -> Prepared:
    run = unsloth.function("fast_dequantize")
    state = bitsandbytes_state(packed, case.format)
    return lambda out: run(packed.data, state)


def dense(case: Case, device: torch.device) -> torch.Tensor:
    """A buffer for the dense weight."""
    return torch.empty((case.shape.out_features, case.shape.in_features), dtype=DTYPES[case.dtype], device=device)


KERNEL = Kernel(
    inputs=packed_4bit,
    output=dense,
    expected=lambda case, packed: [reference(packed, DTYPES[case.dtype])],
    bound=lambda case: 0.0,
    minimum_bytes=traffic.dequantized,
    flops=lambda case: 0,
    implementations={
        "tuneplan": Implementation(_tuneplan, refuses=needs_triton, moved_bytes=traffic.dequantized, basis="one launch"),
        "bitsandbytes": Implementation(
            _bitsandbytes,
            ("bitsandbytes",),
            refuses=bitsandbytes_refuses,
            moved_bytes=bitsandbytes_moved,
            basis="three launches where scales are nested",
        ),
        "torch_compile": Implementation(_torch_compile, bound=CONTRACTED, compiles=True, basis="the reference, compiled"),
        "torchao": Implementation(
            _torchao, ("torchao",), refuses=only_torchaos_format, bound=REQUANTIZED, basis="its own format of NF4, eager"
        ),
        "unsloth": Implementation(
            _unsloth,
            ("unsloth",),
            on_gpu_only=True,
            refuses=only_nested_nf4,
            basis="fast_dequantize of the installed version",
        ),
    },
)
