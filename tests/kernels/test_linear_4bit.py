"""A few tokens times a 4-bit weight: near the exact product, for every path."""

import pytest
import torch
from kernel_cases import DEVICE, quantized, relative_error

from tuneplan.kernels.dequantize_4bit import reference
from tuneplan.kernels.errors import KernelInputError
from tuneplan.kernels.linear_4bit import linear_4bit
from tuneplan.kernels.packed import Packed4bit, operator_parts

LARGEST_ERROR = {torch.float32: 1e-6, torch.float16: 4e-4, torch.bfloat16: 3e-3}
"""Relative, Frobenius: rounding of the result alone is 1.6e-3 in bf16 and 2e-4 in fp16."""


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize(("blocksize", "nested"), [(64, True), (32, False), (128, True)])
def test_error_against_fp64(tokens: int, blocksize: int, nested: bool) -> None:
    """One token, a few, and many, with a bias; rows that do not fill a program, in_features that are split."""
    data, state = quantized(70, 1024, blocksize=blocksize, nested=nested)
    weight = reference(Packed4bit.of(data, state), torch.float32).double()
    for dtype, largest in LARGEST_ERROR.items():
        torch.manual_seed(tokens)
        x, bias = (torch.randn(*size, device=DEVICE).to(dtype) for size in ((tokens, 1024), (70,)))
        y = linear_4bit(x, data, state, bias, backend="triton")
        assert ((tokens, 70), dtype) == (tuple(y.shape), y.dtype)
        assert largest > relative_error(y, x.double() @ weight.t() + bias.double())


@pytest.mark.parametrize("nested", [True, False])
def test_one_token_in_several_turns(nested: bool) -> None:
    """The program of one token walks along in_features in several turns, of which the last is not full."""
    data, state = quantized(35, 2 * 1024 + 448, nested=nested)
    weight = reference(Packed4bit.of(data, state), torch.float32).double()
    for dtype, largest in LARGEST_ERROR.items():
        x = torch.randn(1, weight.shape[1], device=DEVICE).to(dtype)
        assert largest > relative_error(linear_4bit(x, data, state, backend="triton"), x.double() @ weight.t())


@pytest.mark.parametrize("features", [70, 600, 1100, 2200])
def test_one_token_of_any_number_of_rows(features: int) -> None:
    """Few rows are taken four or eight at once, along more of in_features, which need not fill a turn."""
    data, state = quantized(features, 1024 + 320)
    x = torch.randn(1, 1024 + 320, device=DEVICE)
    exact = x.double() @ reference(Packed4bit.of(data, state), torch.float32).double().t()
    assert LARGEST_ERROR[torch.float32] > relative_error(linear_4bit(x, data, state, backend="triton"), exact)


def test_tiles_of_one_token() -> None:
    """Rows and words of a turn: 16 x 128 where rows fill the card, else as many words, but no longer than a row."""
    from tuneplan.kernels.gpu.linear_4bit import vector_tile

    sizes = ((11008, 512), (4096, 512), (2048, 512), (1024, 512), (1024, 1024), (1024, 256), (512, 128), (256, 8))
    expected = [(16, 128), (16, 128), (8, 256), (4, 512), (4, 512), (4, 256), (4, 128), (4, 128)]
    assert expected == [vector_tile(*size) for size in sizes]


@pytest.mark.parametrize("skipped", [1, 2])
def test_one_token_that_begins_anywhere(skipped: int) -> None:
    """A token is read four values at a time, also one that is not aligned to them."""
    data, state = quantized(35, 64)
    x = torch.randn(skipped + 64, device=DEVICE).half()[skipped:].view(1, 64)
    assert x.data_ptr() % 8 == 2 * skipped
    exact = x.double() @ reference(Packed4bit.of(data, state), torch.float32).double().t()
    assert LARGEST_ERROR[torch.float16] > relative_error(linear_4bit(x, data, state, backend="triton"), exact)


def test_other_paths_multiply_the_decoded_weight() -> None:
    """More than 64 tokens, rows that are not whole blocks, no tokens at all, and plain torch."""
    for rows, columns, tokens in ((16, 64, 65), (16, 48, 2), (16, 64, 0)):
        data, state = quantized(rows, columns)
        x = torch.randn(2, tokens, columns, device=DEVICE) if tokens == 65 else torch.randn(tokens, columns, device=DEVICE)
        expected = x @ reference(Packed4bit.of(data, state), torch.float32).t()
        for backend in ("triton", "torch"):
            torch.testing.assert_close(expected, linear_4bit(x, data, state, backend=backend))


def test_tensors_that_begin_within_a_word() -> None:
    """Bytes and tokens that are not aligned to 32 bits are read right."""
    data, state = quantized(16, 64)
    shifted = torch.cat([torch.zeros(1, 1, dtype=torch.uint8, device=DEVICE), data])[1:]
    x = torch.randn(1 + 2 * 64, dtype=torch.float32, device=DEVICE).half()[1:].view(2, 64)
    assert shifted.data_ptr() % 4
    assert x.data_ptr() % 4
    exact = x.double() @ reference(Packed4bit.of(data, state), torch.float32).double().t()
    assert LARGEST_ERROR[torch.float16] > relative_error(linear_4bit(x, shifted, state, backend="triton"), exact)


def test_op_under_torch_tools() -> None:
    """Schema and fake tensors are right, and a graph holds the call."""
    data, state = quantized(16, 64)
    x = torch.randn(2, 64, device=DEVICE)
    packed = Packed4bit.of(data, state)
    torch.library.opcheck(torch.ops.tuneplan.linear_4bit, (x, *operator_parts(packed), None, torch.empty(2, 16, device=DEVICE)))
    compiled = torch.compile(lambda x: linear_4bit(x, data, state, backend="triton"), fullgraph=True, backend="aot_eager")
    assert torch.equal(linear_4bit(x, data, state, backend="triton"), compiled(x))


def test_wrong_input() -> None:
    """Tokens, biases and weights of another width, dtype or device."""
    data, state = quantized(16, 64)
    x = torch.randn(2, 64, device=DEVICE)
    for given, words in (
        ((x[:, :32], data, state), r"x must be \[\.\.\., 64\]"),
        ((x.int(), data, state), "x must be"),
        ((x.to("meta"), data, state), "x lies on meta"),
        ((x, data, state, torch.zeros(15, device=DEVICE)), "bias must be"),
    ):
        with pytest.raises(KernelInputError, match=words):
            linear_4bit(*given)
    state.shape = torch.Size((16 * 64,))
    with pytest.raises(KernelInputError, match="a linear layer's is"):
        linear_4bit(x, data, state)
