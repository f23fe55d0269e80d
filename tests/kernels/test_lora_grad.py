"""Both products with the gradient of the output: Triton's program against fp64, torch's path, what is refused."""

import pytest
import torch
from kernel_cases import DEVICE, relative_error

from tuneplan.kernels.errors import KernelInputError
from tuneplan.kernels.lora_grad import HIGHEST_RANK, lora_grad, reference

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
BOUNDS = {FP32: 1e-6, FP16: 4e-4, BF16: 3e-3}
"""Relative Frobenius norm: the rounding of a result to its dtype is 1.7e-3 in bf16 and 2.1e-4 in fp16."""
Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def parts(rows: int, columns: int, rank: int, grad: torch.dtype, adapter: torch.dtype) -> Parts:
    """A gradient whose rows are apart, B, and an S that is a part of wider rows."""
    torch.manual_seed(rows + columns)
    grad_MN = torch.randn(rows, columns + 8, device=DEVICE).to(grad)[:, :columns]
    B_NR = torch.randn(columns, rank, device=DEVICE).to(adapter)
    return grad_MN, B_NR, torch.randn(rows, rank + 3, device=DEVICE).to(adapter)[:, 1 : rank + 1]


@pytest.mark.parametrize(("grad", "adapter"), [(BF16, BF16), (FP16, FP16), (BF16, FP32), (FP32, BF16)], ids=str)
@pytest.mark.parametrize("shape", [(300, 200, 16), (257, 1100, 8), (33, 70, 5), (1, 1, 1)], ids=str)
def test_triton_against_fp64(shape: tuple[int, int, int], grad: torch.dtype, adapter: torch.dtype) -> None:
    """Tails of rows, columns and ranks, several programs in both directions; dB comes in fp32, exact to it."""
    grad_MN, B_NR, S_MR = parts(*shape, grad, adapter)
    # products are of the adapter's dtype: a wider gradient is rounded to it first, as it is in the reference
    rounded = grad_MN.to(adapter) if grad.itemsize > adapter.itemsize else grad_MN
    exact_dS, exact_dB = reference(rounded.double(), B_NR.double(), S_MR.double(), 0.37)
    dS_MR, dB_NR = lora_grad(grad_MN, B_NR, S_MR, 0.37, backend="triton")
    assert (adapter, FP32) == (dS_MR.dtype, dB_NR.dtype)
    assert BOUNDS[adapter] > relative_error(dS_MR, exact_dS)
    assert BOUNDS[FP32] > relative_error(dB_NR, exact_dB)


def test_the_same_bits_each_time() -> None:
    """Partial sums are added up in one order."""
    first, second = (lora_grad(*parts(300, 1100, 8, BF16, BF16), 2.0, backend="triton") for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_high_ranks_and_fp64_take_matrix_products() -> None:
    """What the program does not take gives the reference's bits, whatever backend was asked for."""
    for case in (parts(40, 30, HIGHEST_RANK + 1, BF16, BF16), parts(40, 30, 4, FP32, FP32), parts(0, 30, 4, BF16, BF16)):
        expected = reference(*case, 0.5)
        result = lora_grad(*case, 0.5, backend="triton")
        assert all(torch.equal(one, other) for one, other in zip(expected, result, strict=True))
        assert [tensor.dtype for tensor in expected] == [tensor.dtype for tensor in result]


def test_op_under_torch_tools() -> None:
    """Schema and fake tensors are right."""
    torch.library.opcheck(torch.ops.tuneplan.lora_grad, (*parts(20, 30, 4, BF16, BF16), 0.5, "auto"))


def test_refused() -> None:
    """Shapes, dtypes and backends that do not fit, before anything runs."""
    grad_MN, B_NR, S_MR = parts(20, 30, 4, BF16, BF16)
    for wrong in ((grad_MN.t(), B_NR, S_MR), (grad_MN, B_NR[:, :3], S_MR), (grad_MN, B_NR, S_MR[:5]), (grad_MN[0], B_NR, S_MR)):
        with pytest.raises(KernelInputError, match="do not fit together"):
            lora_grad(*wrong, 1.0)
    with pytest.raises(KernelInputError, match="one floating dtype"):
        lora_grad(grad_MN, B_NR.float(), S_MR, 1.0)
    with pytest.raises(KernelInputError, match="one floating dtype"):
        lora_grad(grad_MN.int(), B_NR, S_MR, 1.0)
    with pytest.raises(KernelInputError, match="lies on"):
        lora_grad(grad_MN.to("meta"), B_NR, S_MR, 1.0)
    with pytest.raises(KernelInputError, match="unknown backend"):
        lora_grad(grad_MN, B_NR, S_MR, 1.0, backend="cuda")
