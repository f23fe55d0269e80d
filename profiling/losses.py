"""The loss implementations that are not transformers' own; `liger` stands in for the kernel where there is no GPU.

N tokens, H hidden size, V vocabulary.
"""

import sys
from typing import Any

import torch
from torch import nn

CHUNKS = 8


def _hidden_and_head(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, nn.Module, float]:
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = causal.model(input_ids=ids).last_hidden_state
    return hidden, causal.lm_head, getattr(causal.config, "logits_scaling", 1.0)


def chunked(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Head and cross-entropy on an eighth of the length at a time, written as a user would."""
    hidden, head, divisor = _hidden_and_head(model, ids)
    part = -(-hidden.shape[1] // CHUNKS)
    total = None
    for index in range(CHUNKS):
        piece = slice(index * part, (index + 1) * part)
        rows_NH = hidden[:, piece].clone()
        logits = head(rows_NH)
        if divisor != 1.0:
            logits = logits / divisor
        target = labels[:, piece].clone().reshape(-1)
        loss = nn.functional.cross_entropy(logits.float().reshape(-1, logits.shape[-1]), target, reduction="sum")
        total = loss if total is None else total + loss
    assert total is not None
    return total


class FusedLinearCrossEntropy(torch.autograd.Function):
    """Allocates what Liger-Kernel 0.8.5's `fused_linear_cross_entropy_forward` does on Ampere and later."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: torch.Tensor, weight_VH: torch.Tensor) -> torch.Tensor:
        N, H = hidden_NH.shape
        V = weight_VH.shape[0]
        chunk = min(N, 1 << (-(-N // -(-V // H)) - 1).bit_length())
        grad_hidden = torch.zeros_like(hidden_NH)
        grad_weight = torch.zeros_like(weight_VH) if ctx.needs_input_grad[1] else None
        losses = torch.zeros(N, dtype=torch.float32, device=hidden_NH.device)
        logits = torch.empty((chunk, V), dtype=hidden_NH.dtype, device=hidden_NH.device)
        total = losses.sum()
        del logits
        ctx.save_for_backward(grad_hidden, *([] if grad_weight is None else [grad_weight]))
        return total

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = ctx.saved_tensors
        return saved[0], saved[1] if len(saved) > 1 else None


def liger(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The model's hidden states through the fused loss; then the loss of the routers, where the model has one."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    outputs = causal.model(input_ids=ids)
    hidden = outputs.last_hidden_state
    loss: torch.Tensor = FusedLinearCrossEntropy.apply(hidden.view(-1, hidden.shape[-1]), causal.lm_head.weight)
    balance = getattr(sys.modules[type(causal).__module__], "load_balancing_loss_func", None)
    if balance is not None and getattr(outputs, "router_logits", None):
        loss += causal.router_aux_loss_coef * balance(outputs.router_logits, causal.num_experts, causal.num_experts_per_tok)
    return loss


def shifted(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The model's own forward with the loss of transformers 4.48."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    causal.loss_function = _shifted_cross_entropy
    loss: torch.Tensor = model(input_ids=ids, labels=labels).loss
    return loss


def _shifted_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    """fp32 logits, copied without the last token."""
    logits = logits.float()
    short = logits[..., :-1, :].contiguous()
    target = labels[..., 1:].contiguous()
    return nn.functional.cross_entropy(short.view(-1, short.shape[-1]), target.view(-1))


def liger_kernel(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The model's hidden states through Liger's own Triton kernel; needs a GPU and the package liger-kernel."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    hidden, head, divisor = _hidden_and_head(model, ids)
    rows_NH = hidden.view(-1, hidden.shape[-1])
    value: torch.Tensor = LigerFusedLinearCrossEntropyLoss()(
        head.weight, rows_NH if divisor == 1.0 else rows_NH / divisor, labels.view(-1)
    )
    return value


class ChunkedLogProb(torch.autograd.Function):
    """Allocates what TRL 1.16's `ChunkedLogProbFunction` does on a GPU, where Triton kernels fold the tiles in place."""

    TOKENS, COLUMNS, STATISTICS = 4096, 32768, 7

    @staticmethod
    def forward(ctx: Any, rows_NH: torch.Tensor, weight_VH: torch.Tensor, targets_N: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cls = ChunkedLogProb
        N, device = rows_NH.shape[0], rows_NH.device
        statistics = [torch.zeros(N, dtype=torch.float32, device=device) for _ in range(cls.STATISTICS)]
        tile = torch.empty((min(N, cls.TOKENS), cls.COLUMNS), dtype=rows_NH.dtype, device=device)
        log_z = statistics[0] + torch.log(statistics[1])
        log_probs = statistics[-1] - log_z
        entropy = log_z - statistics[2] / statistics[1]
        correct = statistics[-1] >= statistics[0]
        del tile
        ctx.save_for_backward(rows_NH, weight_VH, targets_N, log_z, entropy)
        ctx.mark_non_differentiable(entropy, correct)
        return log_probs, entropy, correct

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows_NH, weight_VH, *_rest = ctx.saved_tensors
        shapes = [t if needed else None for t, needed in zip((rows_NH, weight_VH), ctx.needs_input_grad, strict=False)]
        sums = [None if t is None else torch.zeros(t.shape, dtype=torch.float32, device=t.device) for t in shapes]
        size = (min(len(rows_NH), ChunkedLogProb.TOKENS), ChunkedLogProb.COLUMNS)
        tile = torch.empty(size, dtype=rows_NH.dtype, device=rows_NH.device)
        made = [None if t is None else t.to(like.dtype) for t, like in zip(sums, (rows_NH, weight_VH), strict=True)]
        del tile
        return made[0], made[1], None


def trl(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The model's hidden states through TRL's fused head, all labels counted."""
    hidden, head, _ = _hidden_and_head(model, ids)
    short = hidden[:, :-1]
    mask = torch.ones(short.shape[:-1], dtype=torch.bool, device=ids.device)
    rows = _Rows.apply(short, mask)
    log_probs, entropy, correct = ChunkedLogProb.apply(rows, head.weight, labels[:, 1:].reshape(-1).clone())
    kept = [torch.zeros(mask.shape, dtype=x.dtype, device=x.device) + x.view(mask.shape) for x in (log_probs, entropy, correct)]
    total: torch.Tensor = (-kept[0]).sum()
    return total


class _Rows(torch.autograd.Function):
    """`hidden[mask]` with every row taken: how many they are cannot be asked of a tensor without values."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(mask)
        ctx.shape = hidden.shape
        return hidden.clone().reshape(-1, hidden.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        return gradients[0].new_zeros(ctx.shape), None


LOSSES = {"eager": None, "shifted": shifted, "chunked": chunked, "liger": liger, "trl": trl}
REAL_LOSSES = {"eager": None, "shifted": shifted, "chunked": chunked, "liger": liger_kernel}
"""The same names where values are computed."""
