"""Both products of a LoRA adapter with the gradient of its output, in one pass over that gradient.

Legend: M rows (tokens), N outputs of the layer, R rank; y = x W^T + scale * S B^T with S = x A^T.
"""

import torch

from tuneplan.kernels.backend import calls_directly, chosen
from tuneplan.kernels.errors import KernelInputError
from tuneplan.kernels.packed import FLOATS

HIGHEST_RANK = 32
"""In one pass: the partial sums of higher ranks cost as many bytes as a second one, and more registers than there are."""


def lora_grad(
    grad_MN: torch.Tensor, B_NR: torch.Tensor, S_MR: torch.Tensor, scale: float, *, backend: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """`scale * grad @ B` and `scale * grad^T @ S`.

    On a GPU the gradient is read once: a program holds a strip of rows, walks over the columns, and adds to both products in
    fp32; partial sums are written and added up in a fixed order, so that the result is the same each time.

    Args:
        grad_MN: gradient of the layer's output; fp32, fp16, bf16 or fp64.
        B_NR: the adapter's second matrix; its dtype is that of the products.
        S_MR: x A^T, in the dtype of B.
        scale: of the adapter.
        backend: "auto", "triton" or "torch" (`tuneplan.kernels.backend`).

    Returns:
        [M, R] in the dtype of B, and [N, R] in fp32 (fp64 if B is so; B's dtype where plain matrix products made it).

    Raises:
        KernelInputError: for shapes, dtypes or devices that do not fit together.
        KernelUnavailableError: where `backend="triton"` cannot run.
    """
    _check(grad_MN, B_NR, S_MR)
    if calls_directly():
        return _run(grad_MN, B_NR, S_MR, scale, backend)
    return torch.ops.tuneplan.lora_grad(grad_MN, B_NR, S_MR, scale, backend)  # type: ignore[no-any-return]  # an op is Any


def reference(grad_MN: torch.Tensor, B_NR: torch.Tensor, S_MR: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by two matrix products, both in the dtype of B."""
    grad_MN = grad_MN.to(B_NR.dtype)
    unused = B_NR.new_empty(())
    return (
        torch.addmm(unused, grad_MN, B_NR, beta=0, alpha=scale),
        torch.addmm(unused, grad_MN.t(), S_MR, beta=0, alpha=scale),
    )


def _check(grad_MN: torch.Tensor, B_NR: torch.Tensor, S_MR: torch.Tensor) -> None:
    M, N, R = (*grad_MN.shape, B_NR.shape[-1]) if grad_MN.dim() == 2 else (-1, -1, -1)
    if tuple(B_NR.shape) != (N, R) or tuple(S_MR.shape) != (M, R):
        raise KernelInputError(
            f"gradient [M, N], B [N, R] and S [M, R] do not fit together: {list(grad_MN.shape)}, {list(B_NR.shape)}, "
            f"{list(S_MR.shape)}"
        )
    if B_NR.dtype != S_MR.dtype or not {grad_MN.dtype, B_NR.dtype} <= {*FLOATS, torch.float64}:
        raise KernelInputError(f"B and S must be of one floating dtype: {B_NR.dtype}, {S_MR.dtype}; gradient {grad_MN.dtype}")
    if not grad_MN.device == B_NR.device == S_MR.device:
        raise KernelInputError(f"the gradient lies on {grad_MN.device}, B on {B_NR.device}, S on {S_MR.device}")


def _fits_one_pass(grad_MN: torch.Tensor, B_NR: torch.Tensor) -> bool:
    """Whether the program takes it. Products of fp32 by fp32 stay with the library."""
    kinds = (grad_MN.dtype, B_NR.dtype)
    taken = kinds == (torch.bfloat16, torch.float32) or (kinds[0] in FLOATS and kinds[1] in (torch.float16, torch.bfloat16))
    # before sm_80 tensor cores know no bf16, and shared memory is too small for the tiles
    old = grad_MN.is_cuda and torch.cuda.get_device_capability(grad_MN.device) < (8, 0)
    return taken and not old and B_NR.shape[1] <= HIGHEST_RANK and min(grad_MN.shape) > 0


def _run(
    grad_MN: torch.Tensor, B_NR: torch.Tensor, S_MR: torch.Tensor, scale: float, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    if chosen(backend, grad_MN.device) == "torch" or not _fits_one_pass(grad_MN, B_NR):
        return reference(grad_MN, B_NR, S_MR, scale)
    from tuneplan.kernels.gpu.lora_grad import both_products

    return both_products(grad_MN, B_NR, S_MR, scale)


@torch.library.custom_op("tuneplan::lora_grad", mutates_args=())
def _op(
    grad_MN: torch.Tensor, B_NR: torch.Tensor, S_MR: torch.Tensor, scale: float, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return _run(grad_MN, B_NR, S_MR, scale, backend)


@_op.register_fake
def _fake(
    grad_MN: torch.Tensor, B_NR: torch.Tensor, S_MR: torch.Tensor, scale: float, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    one_pass = chosen(backend, grad_MN.device) == "triton" and _fits_one_pass(grad_MN, B_NR)
    M, (N, R) = grad_MN.shape[0], B_NR.shape
    kind = torch.float32 if one_pass else B_NR.dtype
    return B_NR.new_empty((M, R)), B_NR.new_empty((N, R), dtype=kind)
