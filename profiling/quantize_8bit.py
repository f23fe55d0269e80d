"""Linear layers of LLM.int8 on the meta device: bitsandbytes' module with an operator that allocates what its CUDA path does.

Mirrors `MatMul8bitLt` of bitsandbytes 0.50 autograd/_functions.py and the kernels of backends/cuda/ops.py, for inputs without
outliers (their number depends on values). The library's own fakes cannot run with a threshold on the meta device.
"""

from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn


class Int8Memory(torch.autograd.Function):
    """Quantize the input, multiply in 32 bits, and write fp16; keep the input as it came."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        half = rows.to(torch.float16)
        stats = torch.empty(rows.shape[0], dtype=torch.float32, device=x.device)
        quantized = torch.empty_like(half, dtype=torch.int8)
        outliers = half.abs() >= 6.0
        del half, outliers
        product = torch.empty((rows.shape[0], weight.shape[0]), dtype=torch.int32, device=x.device)
        out = torch.empty_like(product, dtype=torch.float16)
        result = out.to(x.dtype)
        del product, out, stats, quantized
        ctx.dtype, ctx.shape, ctx.weight = x.dtype, x.shape, weight
        ctx.kept = rows if ctx.needs_input_grad[0] else None
        return result.reshape(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad = grads[0].reshape(-1, grads[0].shape[-1]).contiguous()
        dense = ctx.weight.to(ctx.dtype, copy=True)
        return torch.matmul(grad.to(ctx.dtype), dense).view(ctx.shape), None, None


class Linear8bitMemory(bnb.nn.Linear8bitLt):  # type: ignore[misc]
    """`Linear8bitLt` with an int8 weight and scales on the meta device."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = Int8Memory.apply(x, self.state.CB, self.bias)
        return out


def quantize_8bit(model: Any) -> None:
    """Replace every linear layer but the head."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is not nn.Linear or name == "lm_head":
                continue
            layer = Linear8bitMemory(
                child.in_features,
                child.out_features,
                child.bias is not None,
                has_fp16_weights=False,
                threshold=6.0,
                device="meta",
            )
            packed = torch.empty(child.weight.shape, dtype=torch.int8, device="meta")
            scales = torch.empty(child.out_features, dtype=torch.float32, device="meta")
            layer.weight = bnb.nn.Int8Params(packed, requires_grad=False, has_fp16_weights=False, CB=packed, SCB=scales)
            layer.state.CB, layer.state.SCB = packed, scales
            layer.register_buffer("scales", scales)
            if child.bias is not None:
                layer.bias = child.bias
            setattr(module, name, layer)
    model.is_loaded_in_8bit = True
    model.is_quantized = True
