"""The autograd function of LoRA linears that read one input: what it keeps, and its products in the order that saves most.

Legend: M rows (tokens), K inputs, N outputs, R rank, T ranks of all members together.
y = x W^T + b + scale * drop(x) A^T B^T. The adapter's product comes first and the frozen weight's accumulates into it, so that
the output is written twice and rounded once more than a plain linear layer's; the gradient of x likewise.

Kept for the backward pass: x, S = drop(x) A^T, the parameters, the weights as they are stored, and a byte for each dropped value.
"""

from dataclasses import dataclass
from typing import Any

import torch

from tuneplan.kernels.backend import autocast_of
from tuneplan.kernels.frozen_weight import Layout, decoded, put_together
from tuneplan.kernels.lora_grad import lora_grad

NO_SECOND = (
    "a LoRA linear of tuneplan has no second derivative; unpatch(model), or use plain torch ops, where the gradient itself is"
    " differentiated"
)
PER_MEMBER = 3
"""Tensors before the weight's own: A, B, bias."""


@dataclass(frozen=True, slots=True)
class Member:
    """One output: what is not a tensor of it."""

    weight: Layout
    rank: int
    scale: float
    dropout: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What is not a tensor of a call.

    Args:
        members: one for each output.
        compute: dtype of the frozen weights' products.
        adapter: dtype of the adapters' products.
        out: dtype of the outputs.
        backend: of the ops.
    """

    members: tuple[Member, ...]
    compute: torch.dtype
    adapter: torch.dtype
    out: torch.dtype
    backend: str


class LoraLinears(torch.autograd.Function):
    """Outputs of the members for one input. `apply(plan, x, *tensors)`: of each member A, B, bias or None, the weight's parts."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, x: torch.Tensor, *tensors: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Shapes: x [..., K]; each output [..., N]."""
        with torch.autocast(autocast_of(x.device), enabled=False):
            x_MK = x.reshape(-1, x.shape[-1])
            cast_MK = x_MK.to(plan.adapter)
            S_MT, masks = _inner_products(plan, cast_MK, tensors)
            compute_MK = cast_MK if plan.compute == plan.adapter else x_MK.to(plan.compute)
            outputs = []
            at, column = 0, 0
            for member in plan.members:
                S_MR = S_MT[:, column : column + member.rank]
                outputs.append(_output(plan, member, compute_MK, S_MR, tensors[at : at + PER_MEMBER + member.weight.parts]))
                at, column = at + PER_MEMBER + member.weight.parts, column + member.rank
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        needs_x, needs_A, needs_B = _needs(ctx, plan)
        # gradients of A read x in the dtype of its product: the narrower of the two is kept
        kept = cast_MK if plan.adapter.itemsize < x.dtype.itemsize else x
        # parameters and stored weights are there anyway: keeping them costs nothing and notices a change in place
        ctx.save_for_backward(
            kept if needs_A else None, S_MT if needs_B else None, *tensors, *masks if needs_x or needs_A else ()
        )
        ctx.shape, ctx.kind = x.shape, x.dtype
        return tuple(y_MN.view(*x.shape[:-1], y_MN.shape[1]) for y_MN in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x, and of each A, B and bias that needs one."""
        with torch.no_grad(), torch.autocast(_device(grads), enabled=False):
            results = _gradients(ctx, grads)
        if not torch.is_grad_enabled():
            return results
        # the gradient's own graph was asked for: right as it is, and refused where someone differentiates it
        refused = torch._C._functions.DelayedError(NO_SECOND, 1)
        return tuple(None if result is None else refused(result.detach().requires_grad_()) for result in results)


def _device(grads: tuple[torch.Tensor | None, ...]) -> str:
    return next((autocast_of(grad.device) for grad in grads if grad is not None), "cpu")


def _needs(ctx: Any, plan: Plan) -> tuple[bool, bool, bool]:
    """Whether x, any A and any B need a gradient."""
    any_A = any_B = False
    at = 2
    for member in plan.members:
        any_A, any_B = any_A or ctx.needs_input_grad[at], any_B or ctx.needs_input_grad[at + 1]
        at += PER_MEMBER + member.weight.parts
    return ctx.needs_input_grad[1], any_A, any_B


def _each_a(plan: Plan, tensors: tuple[torch.Tensor | None, ...]) -> list[torch.Tensor]:
    found = []
    at = 0
    for member in plan.members:
        found.append(_there(tensors[at]).to(plan.adapter))
        at += PER_MEMBER + member.weight.parts
    return found


def _there(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor


def _wider(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """The dtype that holds both; torch is asked only where they differ, since it takes as long as an op."""
    return one if one == other else torch.promote_types(one, other)


def _joined(parts: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _inner_products(
    plan: Plan, x_MK: torch.Tensor, tensors: tuple[torch.Tensor | None, ...]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """S of all members side by side; without dropout x is read once. Masks of those that drop, in their order."""
    As = _each_a(plan, tensors)
    if not any(member.dropout for member in plan.members):
        return x_MK @ _joined(As).t(), []
    products, masks = [], []
    for member, A_RK in zip(plan.members, As, strict=True):
        if member.dropout:
            # the random numbers that torch.nn.Dropout draws, in the order in which separate layers draw them
            dropped_MK, mask_MK = torch.native_dropout(x_MK, member.dropout, True)
            masks.append(mask_MK)
            products.append(dropped_MK @ A_RK.t())
        else:
            products.append(x_MK @ A_RK.t())
    return _joined(products, 1), masks


def _output(
    plan: Plan, member: Member, x_MK: torch.Tensor, S_MR: torch.Tensor, tensors: tuple[torch.Tensor | None, ...]
) -> torch.Tensor:
    B_RN = _there(tensors[1]).to(plan.adapter).t()
    bias = tensors[2]
    W_KN = decoded(put_together(member.weight, list(map(_there, tensors[PER_MEMBER:]))), plan.compute, plan.backend).t()
    if _wider(plan.compute, plan.out) != plan.compute:
        # a wider output takes the two products unrounded by each other
        base_MN = x_MK @ W_KN if bias is None else torch.addmm(bias.to(plan.compute), x_MK, W_KN)
        if plan.adapter == plan.out:
            return torch.addmm(S_MR.new_empty(()), S_MR, B_RN, beta=0, alpha=member.scale).add_(base_MN)
        return base_MN.to(plan.out).addmm_(S_MR.to(plan.out), B_RN.to(plan.out), alpha=member.scale)
    if bias is None:
        y_MN = torch.addmm(S_MR.new_empty(()), S_MR, B_RN, beta=0, alpha=member.scale)
    else:
        y_MN = torch.addmm(bias.to(plan.adapter), S_MR, B_RN, alpha=member.scale)
    return y_MN.to(plan.compute).addmm_(x_MK, W_KN).to(plan.out)


def _gradients(ctx: Any, grads: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor | None, ...]:
    plan: Plan = ctx.plan
    needs_x, needs_A, _ = _needs(ctx, plan)
    x, S_MT, *saved = ctx.saved_tensors
    count = sum(PER_MEMBER + member.weight.parts for member in plan.members)
    tensors, masks = saved[:count], iter(saved[count:])
    results: list[torch.Tensor | None] = [None] * (2 + count)
    x_MK = x.reshape(-1, x.shape[-1]) if needs_A else None
    parts = []
    at, column = 0, 0
    for member, grad in zip(plan.members, grads, strict=True):
        mask_MK = next(masks, None) if member.dropout else None
        if grad is not None:
            needs = ctx.needs_input_grad[2 + at : 2 + at + PER_MEMBER]
            A_RK, B_NR, bias = tensors[at : at + PER_MEMBER]
            grad_MN = grad.reshape(-1, grad.shape[-1])
            if needs[2]:
                results[2 + at + 2] = grad_MN.sum(0, dtype=_wider(torch.float32, bias.dtype)).to(bias.dtype)
            if needs_x and len(grads) == 1 and plan.adapter == plan.compute:
                grad_MN = grad_MN.to(plan.compute)  # once for both products; of several layers one copy at a time is enough
            S_MR = S_MT[:, column : column + member.rank] if needs[1] else None
            dS_MR, dB_NR = _adapter_grads(plan, member, grad_MN, B_NR, S_MR, needs_x or needs[0])
            if dB_NR is not None:
                results[2 + at + 1] = dB_NR.to(B_NR.dtype)
            weight = tensors[at + PER_MEMBER : at + PER_MEMBER + member.weight.parts]
            parts.append(_Part(member, at, needs[0], A_RK, dS_MR, mask_MK, grad_MN, weight))
        at, column = at + PER_MEMBER + member.weight.parts, column + member.rank
    if parts and needs_A:
        _grads_of_a(plan, _there(x_MK), parts, results)
    if parts and needs_x:
        results[1] = _grad_of_x(plan, ctx.kind, parts).view(ctx.shape)
    return tuple(results)


@dataclass(frozen=True, slots=True)
class _Part:
    """A member that got a gradient, on the way back: A [R, K], the gradients of S [M, R] and of its output [M, N]."""

    member: Member
    at: int
    trains: bool
    A: torch.Tensor
    inner: torch.Tensor | None
    mask: torch.Tensor | None
    grad: torch.Tensor
    weight: list[torch.Tensor]


def _adapter_grads(
    plan: Plan, member: Member, grad_MN: torch.Tensor, B_NR: torch.Tensor, S_MR: torch.Tensor | None, needs_S: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    B_NR = B_NR.to(plan.adapter)
    if needs_S and S_MR is not None:
        return lora_grad(grad_MN, B_NR, S_MR, member.scale, backend=plan.backend)
    grad_MN = grad_MN.to(plan.adapter)
    unused = B_NR.new_empty(())
    if needs_S:
        return torch.addmm(unused, grad_MN, B_NR, beta=0, alpha=member.scale), None
    if S_MR is not None:
        return None, torch.addmm(unused, grad_MN.t(), S_MR, beta=0, alpha=member.scale)
    return None, None


def _dropped(values_MK: torch.Tensor, part: _Part) -> torch.Tensor:
    """Values where the mask kept them, scaled as dropout scales them; itself without dropout."""
    if part.mask is None:
        return values_MK
    kept = 1.0 - part.member.dropout
    return values_MK * part.mask * (1.0 / kept if kept else 0.0)


def _grads_of_a(plan: Plan, x_MK: torch.Tensor, parts: list[_Part], results: list[torch.Tensor | None]) -> None:
    x_MK = x_MK.to(plan.adapter)
    trained = [part for part in parts if part.trains]
    shared = [part for part in trained if part.mask is None]
    if shared:
        dA_TK = _joined([_there(part.inner) for part in shared], 1).t() @ x_MK
        for part, dA_RK in zip(shared, dA_TK.split([part.member.rank for part in shared]), strict=True):
            results[2 + part.at] = dA_RK.to(part.A.dtype)
    for part in trained:
        if part.mask is not None:
            results[2 + part.at] = (_there(part.inner).t() @ _dropped(x_MK, part)).to(part.A.dtype)


def _grad_of_x(plan: Plan, kind: torch.dtype, parts: list[_Part]) -> torch.Tensor:
    # wide enough for both, and for the adapter's part unless that is wider still
    accumulates = _wider(plan.compute, kind)
    adapter = accumulates if _wider(plan.adapter, accumulates) == accumulates else plan.adapter
    shared = [part for part in parts if part.mask is None]
    dx_MK: torch.Tensor | None = None
    if shared:
        dS_MT = _joined([_there(part.inner) for part in shared], 1)
        dx_MK = dS_MT.to(adapter) @ _joined([part.A.to(adapter) for part in shared])
    for part in parts:
        if part.mask is not None:
            more_MK = _dropped(_there(part.inner).to(adapter) @ part.A.to(adapter), part)
            dx_MK = more_MK if dx_MK is None else dx_MK.add_(more_MK)
    dx_MK = _there(dx_MK).to(accumulates)
    for part in parts:
        W_NK = decoded(put_together(part.member.weight, part.weight), plan.compute, plan.backend)
        grad_MN = part.grad.to(plan.compute)
        dx_MK = dx_MK.addmm_(grad_MN, W_NK) if accumulates == plan.compute else dx_MK.add_(grad_MN @ W_NK)
    return dx_MK.to(kind)
