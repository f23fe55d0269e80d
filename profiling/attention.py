"""Attention that allocates what a CUDA kernel would, so that a step traced without a GPU has the GPU's memory.

B batch, H query heads, K key/value heads, S length, T length of keys, D head size. Only sizes and lifetimes are right; values
are not computed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import create_position_bias_mask, repeat_kv, use_gqa_in_sdpa
from transformers.masking_utils import sdpa_mask

from tuneplan.planner.training.attention_kernel import AMPERE, FLASH_MAX_HEAD_DIM

FLASH = "traced_tiled"  # transformers takes a name with "flash" in it for a hub kernel
SDPA = "traced_sdpa"
NAMES = {"eager": "eager", "sdpa": SDPA, "flash": FLASH}


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass(slots=True)
class Products:
    """Who wants to know of the products that the fused kernels below would run: called with FLOPs, bytes moved and the dtype.

    `causal`: half of the scores are not computed.
    """

    hear: Callable[[int, int, str], None] | None = None
    causal: bool = True


products = Products()


def _tell(ctx: Any, q_BHSD: torch.Tensor, k_BKTD: torch.Tensor) -> None:
    """A fused forward; a multiply-add is 2 FLOPs (Dao 2023, FlashAttention-2, section 4.1)."""
    B, H, S, D = q_BHSD.shape
    ctx.flops = 4 * B * H * S * k_BKTD.shape[2] * D // (2 if products.causal else 1)
    if products.hear is not None:
        products.hear(ctx.flops, 2 * (q_BHSD.numel() + k_BKTD.numel()) * q_BHSD.element_size(), str(q_BHSD.dtype))


def _tell_backward(ctx: Any, q_BHSD: torch.Tensor, k_BKTD: torch.Tensor) -> None:
    """Five products where the forward has two."""
    if products.hear is not None:
        moved = 2 * (q_BHSD.numel() + k_BKTD.numel()) * q_BHSD.element_size()
        products.hear(5 * ctx.flops // 2, 3 * moved, str(q_BHSD.dtype))


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
        _tell(ctx, q_BHSD, k_BKSD)
        return out_BHSD

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q_BHSD, k_BKSD, *_ = ctx.saved_tensors
        _tell_backward(ctx, q_BHSD, k_BKSD)
        B, H, S, D = q_BHSD.shape
        rows = _round_up(S, 128)
        columns = _round_up(D, 32)
        dq = torch.empty((B, S, H, D), dtype=q_BHSD.dtype, device=q_BHSD.device)
        K, T = k_BKSD.shape[1:3]
        dk = torch.empty((B, T, K, D), dtype=q_BHSD.dtype, device=q_BHSD.device)
        dv = torch.empty_like(dk)
        scratch = [
            torch.empty((B, H, rows), dtype=torch.float32, device=dq.device),
            torch.empty((B, rows, H, columns), dtype=torch.float32, device=dq.device),
        ]
        if H != K:
            scratch += [torch.empty((B, T, H, D), dtype=dq.dtype, device=dq.device) for _ in range(2)]
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
        B, H, S, _ = q_BHSD.shape
        out_BHSD = torch.empty((B, S, H, v_BHSD.shape[-1]), dtype=q_BHSD.dtype, device=q_BHSD.device).transpose(1, 2)
        lse_BHS = torch.empty((B, H, _round_up(S, 32)), dtype=torch.float32, device=q_BHSD.device)
        ctx.save_for_backward(q_BHSD, k_BHSD, v_BHSD, out_BHSD, lse_BHS, bias)
        _tell(ctx, q_BHSD, k_BHSD)
        return out_BHSD

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q_BHSD, k_BHSD, v_BHSD, *_ = ctx.saved_tensors
        _tell_backward(ctx, q_BHSD, k_BHSD)
        B, H, S, D = q_BHSD.shape
        dq, dk, dv = (
            torch.empty((B, t.shape[2], H, t.shape[3]), dtype=t.dtype, device=t.device) for t in (q_BHSD, k_BHSD, v_BHSD)
        )
        scratch = [torch.empty((B, H, S), dtype=torch.float32, device=dq.device)]
        if q_BHSD.dtype is not torch.float32:
            scratch.append(torch.empty((B, H, S, D), dtype=torch.float32, device=dq.device))
        del scratch
        dbias = None
        if ctx.needs_input_grad[3]:  # rows rounded to 16
            T = k_BHSD.shape[2]
            dbias = torch.empty((B, H, S, _round_up(T, 16)), dtype=q_BHSD.dtype, device=dq.device)[..., :T]
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2), dbias


def _lower(module: Any, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What transformers' FlashAttention code does with fp32 queries: casts them to the model's dtype."""
    if tensors[0].dtype is torch.float32 and module.config.dtype is not torch.float32:
        return tuple(t.to(module.config.dtype) for t in tensors)
    return tensors


def _flash(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: object, **_: object
) -> tuple[torch.Tensor, None]:
    products.causal = bool(getattr(module, "is_causal", True))
    out: torch.Tensor = FlashMemory.apply(*_lower(module, query, key, value))
    return out.transpose(1, 2).contiguous(), None


@dataclass(slots=True)
class Card:
    """The card whose choice of kernel the traced `sdpa` follows, and the dtype that autocast gives it (None without)."""

    compute_capability: tuple[int, int] = AMPERE
    autocast: torch.dtype | None = None


card = Card()


def _sdpa(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """`sdpa_attention_forward` with the kernel that PyTorch would choose on CUDA."""
    if card.autocast is not None:
        query, key, value = (t.to(card.autocast) for t in (query, key, value))
    mask = attention_mask
    groups = query.shape[1] // key.shape[1]
    grouped = groups > 1 and use_gqa_in_sdpa(mask, key, value)
    if groups > 1 and not grouped:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    products.causal = bool(causal)
    causal = bool(causal) and mask is None and query.shape[2] > 1
    if position_bias is not None:
        mask = create_position_bias_mask(position_bias, mask, causal, query, key)
        mask = mask if card.autocast is None else mask.to(card.autocast)
        mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        causal = False
    dims = {t.shape[-1] for t in (query, key, value)}
    plain = mask is None and len(dims) == 1 and max(dims) <= FLASH_MAX_HEAD_DIM
    if plain and query.dtype is not torch.float32 and card.compute_capability >= AMPERE:
        out = FlashMemory.apply(query, key, value)
    elif not grouped:
        bias = mask
        if mask is not None and mask.dtype is torch.bool:
            bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), float("-inf"))
        out = EfficientMemory.apply(query, key, value, bias)
    elif dropout and mask is None:
        out = _math_with_dropout(query, key, value, dropout, scaling, causal)
    else:
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling, is_causal=causal, enable_gqa=True
        )
    return out.transpose(1, 2).contiguous(), None


class TorchSdpa(TorchFunctionMode):
    """Inside, torch's own `scaled_dot_product_attention` runs the kernel that it would choose on CUDA.

    For models whose code calls it instead of transformers' interface. It refuses to broadcast heads in its fused kernels
    (`check_batch_size_and_num_heads_dense` of sdp_utils_cpp.h), so such calls stay what the meta device runs, the unfused one.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args
        if query.shape[1] != key.shape[1]:
            return func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            options = {"attention_mask": kwargs["attn_mask"], "dropout": kwargs["dropout_p"], "is_causal": kwargs["is_causal"]}
            return _sdpa(None, query, key, value, **options)[0].transpose(1, 2)


CALL_TORCH = {"falcon": "FalconAttention"}
"""Model types with a module that calls torch's attention itself, where the config's implementation is "sdpa" by that name."""


def intercept(model: nn.Module) -> None:
    """Make modules that call torch's attention run what CUDA would."""
    for module in model.modules():
        if type(module).__name__ in CALL_TORCH.values():
            module.forward = _within(module.forward)


def _within(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with TorchSdpa():
            return forward(*args, **kwargs)

    return run


def _math_with_dropout(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, p: float, scaling: float | None, causal: bool
) -> torch.Tensor:
    """`_scaled_dot_product_attention_math` of aten/src/ATen/native/transformers/attention.cpp with dropout as CUDA runs it.

    On other devices its dropout keeps noise of the scores' dtype; on CUDA it is one kernel that keeps a boolean mask.
    """
    scale = (scaling or query.shape[-1] ** -0.5) ** 0.5
    groups = query.shape[1] // key.shape[1]
    query = query * scale
    bias: torch.Tensor | float = 0.0
    if causal:
        allowed = torch.ones((query.shape[2], key.shape[2]), dtype=torch.bool, device=query.device).tril()
        bias = torch.where(allowed, 0.0, float("-inf")).to(query.dtype)
        del allowed
    key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    weights = query @ (key * scale).transpose(-2, -1)
    weights = torch.softmax(weights + bias, -1)
    weights = nn.functional.dropout(weights, p, True)
    return weights @ value


def register() -> None:
    """Make both known to transformers: FLASH gets no mask, SDPA those of transformers' own `sdpa`."""
    AttentionInterface.register(FLASH, _flash)
    AttentionMaskInterface.register(FLASH, lambda *args, **kwargs: None)
    AttentionInterface.register(SDPA, _sdpa)
    AttentionMaskInterface.register(SDPA, sdpa_mask)
