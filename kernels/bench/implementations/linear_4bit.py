"""A few tokens times a 4-bit weight."""

from dataclasses import dataclass
from typing import Any

import torch

from tuneplan.kernels.bench import traffic
from tuneplan.kernels.bench.cases import DTYPES, Case
from tuneplan.kernels.bench.implementations import torchao, unsloth
from tuneplan.kernels.bench.implementations.dequantize_4bit import (
    REQUANTIZED,
    bitsandbytes_refuses,
    decoder,
    only_nested_nf4,
    only_torchaos_format,
)
from tuneplan.kernels.bench.kernel import Implementation, Kernel, Prepared, compiled, needs_triton
from tuneplan.kernels.bench.weights import bitsandbytes_state, normal, packed_4bit
from tuneplan.kernels.dequantize_4bit import reference
from tuneplan.kernels.linear_4bit import linear_4bit
from tuneplan.kernels.packed import Packed4bit

BOUNDS = {"bf16": 3e-3, "fp16": 4e-4, "fp32": 1e-5}
"""Relative error of a product to the one in fp64: a rounding of each result (1.6e-3 in bf16) and one more, over many results."""


def scattered(bound: float, results: int) -> float:
    """A bound on the error of many results, for some: the mean of few scatters."""
    return float(bound * (1 + 2 / results**0.5))


@dataclass(frozen=True, slots=True)
class Inputs:
    """A weight, and [tokens, in_features]."""

    packed: Packed4bit
    x: torch.Tensor


def _inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    return Inputs(packed_4bit(case, device, seed), normal((case.tokens, case.shape.in_features), case.dtype, device, seed))


def _expected(case: Case, inputs: Inputs) -> list[torch.Tensor]:
    weight = reference(inputs.packed, torch.float32)
    # in slices of rows, so that the fp64 copy stays small
    return [torch.cat([inputs.x.double() @ rows.double().t() for rows in weight.split(4096)], dim=1)]


def _tuneplan(case: Case, inputs: Inputs) -> Prepared:
    return lambda out: linear_4bit(inputs.x, inputs.packed.data, inputs.packed)


def _bitsandbytes(case: Case, inputs: Inputs) -> Prepared:
    from bitsandbytes import matmul_4bit

    state = bitsandbytes_state(inputs.packed, case.format)

    def run(out: torch.Tensor | None) -> Any:
        with torch.no_grad():
            return matmul_4bit(inputs.x, inputs.packed.data.t(), state)

    return run


def _torch_compile(case: Case, inputs: Inputs) -> Prepared:
    decode, tensors = decoder(inputs.packed, DTYPES[case.dtype])

    def multiply(x: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, decode(*parts))

    fast = compiled(case, lambda: multiply)
    return lambda out: fast(inputs.x, *tensors)


def _torchao(case: Case, inputs: Inputs) -> Prepared:
    weight = torchao.nf4(reference(inputs.packed, DTYPES[case.dtype]))
    return lambda out: torch.nn.functional.linear(inputs.x, weight)


def _unsloth(case: Case, inputs: Inputs) -> Prepared:
    run = unsloth.function("fast_gemv")
    state = bitsandbytes_state(inputs.packed, case.format)
    return lambda out: run(inputs.x[None], inputs.packed.data, state).reshape(case.tokens, -1)


def _unsloth_refuses(case: Case, device: torch.device) -> str | None:
    return "its product is of one token" if case.tokens != 1 else only_nested_nf4(case, device)


KERNEL = Kernel(
    inputs=_inputs,
    output=lambda case, device: None,
    expected=_expected,
    bound=lambda case: scattered(BOUNDS[case.dtype], case.tokens * case.shape.out_features),
    minimum_bytes=traffic.product,
    flops=traffic.product_flops,
    implementations={
        "tuneplan": Implementation(
            _tuneplan, refuses=needs_triton, moved_bytes=traffic.product, basis="weights decoded inside the product"
        ),
        "bitsandbytes": Implementation(
            _bitsandbytes, ("bitsandbytes",), refuses=bitsandbytes_refuses, basis="matmul_4bit, which picks its kernel by tokens"
        ),
        "torch_compile": Implementation(_torch_compile, compiles=True, basis="the reference and a product, compiled"),
        "torchao": Implementation(
            _torchao, ("torchao",), refuses=only_torchaos_format, bound=REQUANTIZED, basis="its own format of NF4, eager"
        ),
        "unsloth": Implementation(_unsloth, ("unsloth",), on_gpu_only=True, refuses=_unsloth_refuses, basis="fast_gemv"),
    },
)
