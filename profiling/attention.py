"""Attention that allocates what a CUDA kernel would, so that a step traced without a GPU has the GPU's memory.

B batch, H query heads, K key/value heads, S length, D head size. Only sizes and lifetimes are right; values are not computed.
"""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

FLASH = "traced_tiled"  # transformers takes a name with "flash" in it for a hub kernel
EFFICIENT = "traced_efficient"
MASKED = "traced_efficient_masked"
MATH = "traced_math"


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class FlashMemory(torch.autograd.Function):
    """FlashAttention-2 as PyTorch calls it: saves q, k, v, the output and the log-sum-exp.

    Mirrors `mha_fwd` and `mha_bwd` of aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp: the backward holds a
    fp32 accumulator of dQ and, with grouped heads, dK and dV for every query head.
    """

    @staticmethod
    def forward(ctx: Any, q_BHSD: torch.Tensor, k_BKSD: torch.Tensor, v_BKSD: torch.Tensor) -> torch.Tensor:
        B, H, S, D = q_BHSD.shape
        out_BHSD = torch.empty((B, S, H, D), dtype=q_BHSD.dtype, device=q_BHSD.device).transpose(1, 2)
        lse_BHS = torch.empty((B, H, S), dtype=torch.float32, device=q_BHSD.device)
        ctx.save_for_backward(q_BHSD, k_BKSD, v_BKSD, out_BHSD, lse_BHS)
        return out_BHSD

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q_BHSD, k_BKSD, *_ = ctx.saved_tensors
        B, H, S, D = q_BHSD.shape
        rows = _round_up(S, 128)
        columns = _round_up(D, 32)
        dq = torch.empty((B, S, H, D), dtype=q_BHSD.dtype, device=q_BHSD.device)
        dk = torch.empty((B, k_BKSD.shape[2], k_BKSD.shape[1], D), dtype=q_BHSD.dtype, device=q_BHSD.device)
        dv = torch.empty_like(dk)
        scratch = [
            torch.empty((B, H, rows), dtype=torch.float32, device=dq.device),
            torch.empty((B, rows, H, columns), dtype=torch.float32, device=dq.device),
        ]
        if k_BKSD.shape[1] != H:
            scratch += [torch.empty_like(dq), torch.empty_like(dq)]
        del scratch
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)


class EfficientMemory(torch.autograd.Function):
    """The memory-efficient (CUTLASS) kernel: as flash, with a log-sum-exp padded to 32 rows.

    Mirrors `_efficient_attention_forward` and `_efficient_attention_backward` of
    aten/src/ATen/native/transformers/cuda/attention.cu and attention_backward.cu: below fp32 the backward accumulates dQ in a
    fp32 workspace.
    """

    @staticmethod
    def forward(
        ctx: Any, q_BHSD: torch.Tensor, k_BHSD: torch.Tensor, v_BHSD: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        B, H, S, D = q_BHSD.shape
        out_BHSD = torch.empty((B, S, H, D), dtype=q_BHSD.dtype, device=q_BHSD.device).transpose(1, 2)
        lse_BHS = torch.empty((B, H, _round_up(S, 32)), dtype=torch.float32, device=q_BHSD.device)
        ctx.save_for_backward(q_BHSD, k_BHSD, v_BHSD, out_BHSD, lse_BHS, bias)
        return out_BHSD

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q_BHSD, k_BHSD, *_ = ctx.saved_tensors
        B, H, S, D = q_BHSD.shape
        dq = torch.empty((B, S, H, D), dtype=q_BHSD.dtype, device=q_BHSD.device)
        dk = torch.empty((B, k_BHSD.shape[2], H, D), dtype=q_BHSD.dtype, device=q_BHSD.device)
        dv = torch.empty_like(dk)
        scratch = [torch.empty((B, H, S), dtype=torch.float32, device=dq.device)]
        if q_BHSD.dtype is not torch.float32:
            scratch.append(torch.empty((B, H, S, D), dtype=torch.float32, device=dq.device))
        del scratch
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2), None


def _flash(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: object, **_: object
) -> tuple[torch.Tensor, None]:
    if query.dtype is torch.float32 and module.config.dtype is not torch.float32:
        query, key, value = (t.to(module.config.dtype) for t in (query, key, value))
    out: torch.Tensor = FlashMemory.apply(query, key, value)
    return out.transpose(1, 2).contiguous(), None


def _efficient(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **_: object
) -> tuple[torch.Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    bias = None
    if mask is not None:
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), float("-inf"))
    out: torch.Tensor = EfficientMemory.apply(query, key, value, bias)
    return out.transpose(1, 2).contiguous(), None


def _mask(*_: object, batch_size: int, q_length: int, kv_length: int, **kwargs: Any) -> torch.Tensor:
    return torch.ones((batch_size, 1, q_length, kv_length), dtype=torch.bool, device=kwargs.get("device"))


def _math(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: object, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    out = nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        dropout_p=kwargs.get("dropout", 0.0),
        scale=kwargs.get("scaling"),
        is_causal=True,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous(), None


def register() -> None:
    """Make the kernels known to transformers under the names FLASH, EFFICIENT and MATH without a mask, MASKED with one."""
    for name, forward in ((FLASH, _flash), (EFFICIENT, _efficient), (MATH, _math)):
        AttentionInterface.register(name, forward)
        AttentionMaskInterface.register(name, lambda *args, **kwargs: None)
    AttentionInterface.register(MASKED, _efficient)
    AttentionMaskInterface.register(MASKED, _mask)
