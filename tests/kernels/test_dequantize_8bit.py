"""8-bit dequantization: blockwise tables and LLM.int8's rows, the bits of bitsandbytes."""

import itertools
from dataclasses import replace

import bitsandbytes.functional as bnb
import pytest
import torch
from kernel_cases import DEVICE, FLOATS, apart, bits

from tuneplan.kernels.dequantize_8bit import dequantize_8bit, dequantize_8bit_rows, reference, reference_rows
from tuneplan.kernels.errors import KernelInputError
from tuneplan.kernels.packed import Packed8bit, operator_parts

SHAPES = ((64, 64), (5, 33), (3, 7), (100, 128))


def rowwise(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 values and the largest magnitude of each row."""
    torch.manual_seed(rows)
    data, scale, _ = bnb.int8_vectorwise_quant(torch.randn(rows, columns, dtype=torch.float16, device=DEVICE))
    return data, scale


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blockwise_bits(shape: tuple[int, int]) -> None:
    """Both backends, the reference and bitsandbytes agree: three block sizes, quantized scales or not, three types."""
    for blocksize, nested, dtype in itertools.product((64, 256, 4096), (True, False), FLOATS):
        torch.manual_seed(blocksize)
        data, state = bnb.quantize_blockwise(torch.randn(*shape, device=DEVICE), nested=nested, blocksize=blocksize)
        state.dtype = dtype
        expected = reference(Packed8bit.of(data, state), dtype)
        for backend in ("triton", "torch"):
            assert torch.equal(bits(expected), bits(dequantize_8bit(data, state, backend=backend)))
        assert torch.equal(bits(expected), bits(bnb.dequantize_blockwise(data, state)))


@pytest.mark.parametrize("shape", [*SHAPES, (5, 3000)], ids=str)
def test_row_bits(shape: tuple[int, int]) -> None:
    """Triton and the reference give what bitsandbytes' copy and product in place give, also into rows that are apart."""
    data, scale = rowwise(*shape)
    for dtype in FLOATS:
        expected = data.to(dtype, copy=True).mul_(scale.unsqueeze(1).mul(1.0 / 127.0))
        assert torch.equal(bits(expected), bits(reference_rows(data, scale, dtype)))
        for backend in ("triton", "torch"):
            assert torch.equal(bits(expected), bits(dequantize_8bit_rows(data, scale, dtype=dtype, backend=backend)))
            whole, part = apart(*shape, dtype)
            dequantize_8bit_rows(data, scale, out=part, backend=backend)
            assert torch.equal(bits(expected), bits(part))
            assert whole[:, shape[1] :].isnan().all()


def test_several_pieces_on_a_cpu() -> None:
    """More values than are decoded at once, the last ones no full piece."""
    data, scale = rowwise(301, 2049)
    assert torch.equal(reference_rows(data, scale, torch.bfloat16), dequantize_8bit_rows(data, scale, dtype=torch.bfloat16))
    flat, state = bnb.quantize_blockwise(torch.randn(301, 2049, device=DEVICE), blocksize=256)
    assert torch.equal(reference(Packed8bit.of(flat, state), torch.float32), dequantize_8bit(flat, state))


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_the_result_carries_no_gradient(backend: str) -> None:
    """Also where the table or the scales are trained."""
    data, scale = rowwise(16, 48)
    rows = dequantize_8bit_rows(data, scale.clone().requires_grad_(), dtype=torch.float32, backend=backend)
    flat, state = bnb.quantize_blockwise(torch.randn(16, 48, device=DEVICE), blocksize=64)
    packed = Packed8bit.of(flat, state)
    blocks = dequantize_8bit(flat, replace(packed, code=packed.code.clone().requires_grad_()), backend=backend)
    assert not rows.requires_grad
    assert not blocks.requires_grad
    assert torch.equal(reference_rows(data, scale, torch.float32), rows)
    assert torch.equal(reference(packed, torch.float32), blocks)


def test_ops_under_torch_tools() -> None:
    """Schema, fake tensors and the dispatch of autograd are right; and they compile in one graph."""
    data, scale = rowwise(16, 48)
    torch.library.opcheck(torch.ops.tuneplan.dequantize_8bit_rows, (data, scale, torch.empty(16, 48, device=DEVICE), "auto"))
    flat, state = bnb.quantize_blockwise(torch.randn(16, 48, device=DEVICE), blocksize=64)
    packed = Packed8bit.of(flat, state)
    torch.library.opcheck(
        torch.ops.tuneplan.dequantize_8bit, (*operator_parts(packed), torch.empty(16, 48, device=DEVICE), "auto")
    )

    def total(data: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
        return dequantize_8bit_rows(data, scale, dtype=torch.float32) + dequantize_8bit(flat, state)

    assert torch.equal(total(data, flat), torch.compile(total, fullgraph=True, backend="aot_eager")(data, flat))


def test_default_dtypes() -> None:
    """fp16 for LLM.int8, the tensor's own for a blockwise one."""
    assert torch.float16 == dequantize_8bit_rows(*rowwise(4, 8)).dtype
    assert torch.float32 == dequantize_8bit(*bnb.quantize_blockwise(torch.randn(4, 8, device=DEVICE))).dtype


def test_wrong_input() -> None:
    """dtypes, shapes, devices and layouts that cannot be."""
    data, scale = rowwise(16, 64)
    for wrong, words in (
        ((data.float(), scale), "contiguous matrix of int8"),
        ((data[:, ::2], scale), "contiguous matrix of int8"),
        ((data.reshape(-1), scale), "contiguous matrix of int8"),
        ((data, scale[:8]), "scales must be"),
        ((data, scale.half()), "scales must be"),
        ((data, scale.to("meta")), "the scales lie on meta"),
    ):
        with pytest.raises(KernelInputError, match=words):
            dequantize_8bit_rows(*wrong)
    flat, state = bnb.quantize_blockwise(torch.randn(16, 64, device=DEVICE), blocksize=64)
    with pytest.raises(KernelInputError, match="contiguous uint8"):
        dequantize_8bit(flat.char(), state)
    with pytest.raises(KernelInputError, match="absmax must be"):
        dequantize_8bit(flat[:8].contiguous(), state)
    with pytest.raises(KernelInputError, match="contiguous ones only"):
        dequantize_8bit(flat, state, out=apart(16, 64, torch.float32)[1])
    with pytest.raises(KernelInputError, match="not the quant state of a blockwise"):
        dequantize_8bit(flat, bnb.quantize_4bit(torch.randn(16, 64, device=DEVICE))[1])
