"""Forward and backward of a frozen 4-bit layer with its adapter; rank 0 is the same layer without one.

A call gives the output and the gradients of x, A and B. Adapters have the dtype of the activations. No dropout.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tuneplan.kernels.bench import traffic
from tuneplan.kernels.bench.cases import DTYPES, Case
from tuneplan.kernels.bench.implementations import unsloth
from tuneplan.kernels.bench.implementations.dequantize_4bit import bitsandbytes_refuses, only_nested_nf4
from tuneplan.kernels.bench.implementations.linear_4bit import scattered
from tuneplan.kernels.bench.kernel import Implementation, Kernel, Prepared, compiled, needs_triton
from tuneplan.kernels.bench.weights import bitsandbytes_state, normal, packed_4bit
from tuneplan.kernels.dequantize_4bit import dequantize_4bit, reference
from tuneplan.kernels.lora_linear import lora_linear
from tuneplan.kernels.packed import Packed4bit

SCALE = 2.0
"""lora_alpha is twice the rank."""
BOUNDS = {"bf16": 6e-3, "fp16": 1e-3, "fp32": 1e-5}
"""Relative error of each result to the one in fp64: a few roundings one after another, each 1.6e-3 in bf16."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """A weight, its adapter, activations and the gradient of the output; x, A and B want gradients."""

    packed: Packed4bit
    x: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    dy: torch.Tensor

    def leaves(self) -> tuple[torch.Tensor, ...]:
        """What gradients are taken of."""
        return (self.x, self.A, self.B) if self.A.numel() else (self.x,)


def _inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    n, k = case.shape.out_features, case.shape.in_features

    def draw(offset: int, *shape: int, size: float = 1.0) -> torch.Tensor:
        return normal(shape, case.dtype, device, seed + offset, size)

    return Inputs(
        packed_4bit(case, device, seed),
        draw(1, case.tokens, k).requires_grad_(),
        draw(2, case.rank, k, size=k**-0.5).requires_grad_(),
        draw(3, n, case.rank, size=0.02).requires_grad_(),
        draw(4, case.tokens, n),
    )


def _expected(case: Case, inputs: Inputs) -> list[torch.Tensor]:
    with torch.no_grad():
        weight = reference(inputs.packed, torch.float32).double()
        x, a, b, dy = (tensor.double() for tensor in (inputs.x, inputs.A, inputs.B, inputs.dy))
        if not case.rank:
            return [x @ weight.t(), dy @ weight]
        down, back = x @ a.t(), dy @ b * SCALE
        return [x @ weight.t() + down @ b.t() * SCALE, dy @ weight + back @ a, back.t() @ x, dy.t() @ down * SCALE]


def _bound(case: Case) -> float:
    """By the smallest of the results."""
    results = min(case.tokens, case.rank or case.tokens) * min(case.shape.out_features, case.shape.in_features)
    return scattered(BOUNDS[case.dtype], results)


def _trained(inputs: Inputs, forward: Callable[[torch.Tensor], torch.Tensor]) -> Prepared:
    """The output, and the gradients of what wants one."""

    def run(out: torch.Tensor | None) -> Any:
        y = forward(inputs.x)
        return y.detach(), *torch.autograd.grad(y, inputs.leaves(), inputs.dy)

    return run


class _Frozen(torch.autograd.Function):
    """A frozen layer without an adapter: the weight is decoded in each direction."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: Packed4bit) -> torch.Tensor:
        """[tokens, out_features]."""
        ctx.packed = packed
        return x @ dequantize_4bit(packed.data, packed, dtype=x.dtype).t()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Of x."""
        return grads[0] @ dequantize_4bit(ctx.packed.data, ctx.packed, dtype=grads[0].dtype), None


def _tuneplan(case: Case, inputs: Inputs) -> Prepared:
    if not case.rank:
        return _trained(inputs, lambda x: _Frozen.apply(x, inputs.packed))
    return _trained(inputs, lambda x: lora_linear(x, inputs.packed, inputs.A, inputs.B, scale=SCALE))


def peft_layer(case: Case, inputs: Inputs) -> Any:
    """The layer of bitsandbytes over the weight, under PEFT's adapter of the same values; alone for rank 0."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    kind = DTYPES[case.dtype]
    with torch.device("meta"):
        layer = Linear4bit(
            case.shape.in_features, case.shape.out_features, bias=False, compute_dtype=kind, quant_type=case.format
        )
    state = bitsandbytes_state(inputs.packed, case.format)
    layer.weight = Params4bit(
        inputs.packed.data, requires_grad=False, quant_state=state, quant_type=case.format, module=layer, bnb_quantized=True
    )
    layer.quant_state = state
    if not case.rank:
        return layer
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=case.rank, lora_alpha=int(SCALE * case.rank), target_modules=["linear"])
    model = get_peft_model(torch.nn.ModuleDict({"linear": layer}), config, autocast_adapter_dtype=False)
    adapted = model.base_model.model["linear"]
    for adapter, values in ((adapted.lora_A, inputs.A), (adapted.lora_B, inputs.B)):
        adapter["default"].weight = torch.nn.Parameter(values.detach())
    return adapted


def _peft(case: Case, inputs: Inputs, run: Callable[[Any], Callable[[torch.Tensor], torch.Tensor]]) -> Prepared:
    layer = peft_layer(case, inputs)
    if not case.rank:
        return _trained(inputs, run(layer))
    own = Inputs(inputs.packed, inputs.x, layer.lora_A["default"].weight, layer.lora_B["default"].weight, inputs.dy)
    return _trained(own, run(layer))


def _bitsandbytes(case: Case, inputs: Inputs) -> Prepared:
    return _peft(case, inputs, lambda layer: layer)


def _torch_compile(case: Case, inputs: Inputs) -> Prepared:
    fast = compiled(case, lambda: lambda layer, x: layer(x), fullgraph=False)
    return _peft(case, inputs, lambda layer: lambda x: fast(layer, x))


def _unsloth(case: Case, inputs: Inputs) -> Prepared:
    return _peft(case, inputs, lambda layer: lambda x: unsloth.adapted_linear(layer)(x[None])[0])


def _unsloth_refuses(case: Case, device: torch.device) -> str | None:
    return only_nested_nf4(case, device) if case.rank else "it is called for adapted layers only"


KERNEL = Kernel(
    inputs=_inputs,
    output=lambda case, device: None,
    expected=_expected,
    bound=_bound,
    minimum_bytes=traffic.trained,
    flops=traffic.trained_flops,
    implementations={
        "tuneplan": Implementation(
            _tuneplan, refuses=needs_triton, basis="lora_linear; rank 0: the weight decoded, and a product, in each direction"
        ),
        "bitsandbytes": Implementation(
            _bitsandbytes,
            ("bitsandbytes", "peft"),
            refuses=bitsandbytes_refuses,
            basis="PEFT's own layer over bitsandbytes' Linear4bit",
        ),
        "torch_compile": Implementation(
            _torch_compile,
            ("bitsandbytes", "peft"),
            refuses=bitsandbytes_refuses,
            compiles=True,
            basis="PEFT's own layer, compiled",
        ),
        "unsloth": Implementation(
            _unsloth,
            ("unsloth", "bitsandbytes", "peft"),
            on_gpu_only=True,
            refuses=_unsloth_refuses,
            basis="apply_lora_o over PEFT's layer",
        ),
    },
)
