"""LoRA linears over frozen dense, 4-bit and LLM.int8 weights: the adapter's product first, the weight's accumulates into it.

What PEFT's own layers do in three to six passes over the output (a clone, the adapter's product, its scaling, a cast, a sum) is
one here, and x is read once by the adapters of layers that share it. See `tuneplan.kernels.lora_function` for the order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tuneplan.kernels.backend import autocast_of, chosen
from tuneplan.kernels.errors import KernelInputError
from tuneplan.kernels.frozen_weight import DENSE, Rows8bit, Weight, checked, taken_apart
from tuneplan.kernels.lora_function import LoraLinears, Member, Plan


@dataclass(frozen=True, slots=True)
class Adapted:
    """A frozen linear layer and its adapter.

    Args:
        weight: [N, K], a dense tensor, a `Packed4bit` or a `Rows8bit`.
        A: [R, K].
        B: [N, R], in the dtype of A.
        scale: of the adapter's product (alpha / R, or alpha / sqrt(R)).
        bias: [N] or None; may be trained.
        dropout: share of x that the adapter does not see; 0 outside of training.
    """

    weight: Weight
    A: torch.Tensor
    B: torch.Tensor
    scale: float = 1.0
    bias: torch.Tensor | None = None
    dropout: float = 0.0


def lora_linear(
    x: torch.Tensor,
    weight: Weight,
    A: torch.Tensor,
    B: torch.Tensor,
    *,
    scale: float = 1.0,
    bias: torch.Tensor | None = None,
    dropout: float = 0.0,
    compute_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """`x W^T + bias + scale * drop(x) A^T B^T`, with gradients of x, A, B and bias.

    Dtypes follow PEFT's layers. The adapter's products are in A's dtype (fp32 adapters over bf16 inputs give fp32 products), the
    weight's in x's, or in `compute_dtype` for a quantized one, and the output has the dtype of x. Where autocast is on, all
    products are in its dtype, and the output too; over a quantized weight the output has the wider of that and x's.

    Args:
        x: [..., K].
        weight: [N, K], a dense tensor without gradient, a `Packed4bit` or a `Rows8bit`.
        A: [R, K].
        B: [N, R], in the dtype of A.
        scale: of the adapter's product.
        bias: [N] or None.
        dropout: share of x that the adapter does not see, from 0 to 1.
        compute_dtype: of the products with a quantized weight (bitsandbytes' `compute_dtype`).
        backend: of the ops: "auto", "triton" or "torch" (`tuneplan.kernels.backend`).

    Returns:
        [..., N].

    Raises:
        KernelInputError: for parts that do not fit together, before anything is launched.
        KernelUnavailableError: where `backend="triton"` cannot run.
    """
    return lora_linears(x, [Adapted(weight, A, B, scale, bias, dropout)], compute_dtype=compute_dtype, backend=backend)[0]


def lora_linears(
    x: torch.Tensor, members: Sequence[Adapted], *, compute_dtype: torch.dtype | None = None, backend: str = "auto"
) -> tuple[torch.Tensor, ...]:
    """Outputs of several LoRA linears of one input (q, k and v; gate and up), as one node of autograd.

    x is read once for all A, and once for all their gradients; the gradient of x is added up in place. With dropout each adapter
    drops values of its own, and reads x itself. Under torch.compile no tensor may be given twice.

    Args:
        x: [..., K].
        members: the layers; weights all dense or all quantized; N, rank, scale, bias and dropout of each its own.
        compute_dtype: as for `lora_linear`.
        backend: as for `lora_linear`.

    Returns:
        [..., N] for each.

    Raises:
        KernelInputError: for parts that do not fit together, before anything is launched.
        KernelUnavailableError: where `backend="triton"` cannot run.
    """
    if not members:
        raise KernelInputError("no layer is given: members must hold one at least")
    for member in members:
        check(x, member)
    if len({member.A.dtype for member in members}) > 1:
        raise KernelInputError("adapters of one input must be of one dtype; call lora_linear for each")
    dense = {isinstance(member.weight, torch.Tensor) for member in members}
    if len(dense) > 1:
        raise KernelInputError("dense and quantized weights cannot share one call; call lora_linear for each")
    compute, adapter, out = dtypes(x, members[0], compute_dtype)
    chosen(backend, x.device)
    tensors: list[torch.Tensor | None] = []
    layouts = []
    for member in members:
        layout, parts = taken_apart(member.weight)
        tensors += [member.A, member.B, member.bias, *parts]
        layouts.append(Member(layout, member.A.shape[0], float(member.scale), float(member.dropout)))
    plan = Plan(tuple(layouts), compute, adapter, out, backend)
    return LoraLinears.apply(plan, x, *tensors)  # type: ignore[no-any-return]  # apply is Any


def check(x: torch.Tensor, member: Adapted) -> None:
    """Raises KernelInputError where a layer, its adapter and its input do not fit together."""
    N, K = checked(member.weight).shape
    if x.dtype not in DENSE:
        raise KernelInputError(f"inputs of {x.dtype} are not supported: fp32, fp16, bf16 and fp64 are")
    if x.dim() == 0 or x.shape[-1] != K:
        raise KernelInputError(f"x is {list(x.shape)}, but the weight [{N}, {K}] takes rows of {K}")
    A, B, bias = member.A, member.B, member.bias
    if A.dim() != 2 or A.shape[1] != K or A.shape[0] == 0:
        raise KernelInputError(f"A is {list(A.shape)}; over a weight [{N}, {K}] it is [rank, {K}]")
    if tuple(B.shape) != (N, A.shape[0]):
        raise KernelInputError(f"B is {list(B.shape)}; with A {list(A.shape)} over a weight [{N}, {K}] it is [{N}, {A.shape[0]}]")
    if A.dtype not in DENSE or A.dtype != B.dtype:
        raise KernelInputError(f"A and B must be of one floating dtype, but are {A.dtype} and {B.dtype}")
    if bias is not None and (tuple(bias.shape) != (N,) or bias.dtype not in DENSE):
        raise KernelInputError(f"bias is {list(bias.shape)} of {bias.dtype}; over a weight [{N}, {K}] it is [{N}], floating")
    for name, tensor in (("the weight", member.weight), ("A", A), ("B", B), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise KernelInputError(f"{name} lies on {tensor.device}, x on {x.device}; move one of them")
    if not 0 <= member.dropout <= 1:
        raise KernelInputError(f"dropout {member.dropout} is no share from 0 to 1")
    if not math.isfinite(member.scale):
        raise KernelInputError(f"the scale {member.scale} is not a finite number")


def dtypes(x: torch.Tensor, member: Adapted, compute_dtype: torch.dtype | None) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
    """Dtypes of the weight's products, the adapter's products, and the output.

    Raises:
        KernelInputError: for a dense weight of another dtype than x where autocast is off, or one that cannot be decoded so.
    """
    kind = autocast_of(x.device)
    cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    adapter = cast or member.A.dtype
    if isinstance(member.weight, torch.Tensor):
        if compute_dtype is not None:
            raise KernelInputError("compute_dtype is for quantized weights; a dense one computes in its own dtype")
        if cast is None and member.weight.dtype != x.dtype:
            raise KernelInputError(f"x is {x.dtype}, the weight {member.weight.dtype}; cast one of them, or use autocast")
        return cast or x.dtype, adapter, cast or x.dtype
    # bitsandbytes' own products are autocast's too, except that those of a GPU give LLM.int8 outputs the dtype of x
    compute = cast or compute_dtype or x.dtype
    if torch.float64 in (compute, x.dtype, member.A.dtype):
        raise KernelInputError("a quantized weight is decoded to fp32, fp16 or bf16, not to fp64: cast x and the adapter")
    if compute not in DENSE:
        raise KernelInputError(f"compute_dtype {compute} is not supported: fp32, fp16 and bf16 are")
    if cast is None or (isinstance(member.weight, Rows8bit) and kind != "cuda"):
        return compute, adapter, cast or x.dtype
    return compute, adapter, torch.promote_types(x.dtype, cast)
