"""Weights of more than 2^31 values: the last rows. Triton's interpreter runs the last programs of each grid alone.

What is not touched is never in memory: zeros and empty tensors of gigabytes are pages that nobody asked for.
"""

import builtins

import pytest
import torch
from kernel_cases import relative_error
from triton.runtime import interpreter

from tuneplan.kernels.bench.checks import rows_of
from tuneplan.kernels.dequantize_4bit import reference
from tuneplan.kernels.gpu import dequantize_4bit, linear_4bit
from tuneplan.kernels.packed import NestedScales, Packed4bit

ROWS, COLUMNS, LAST = 2**20 + 8, 2**11, 8

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a GPU runs whole grids; `beyond_32_bits` of `tuneplan.kernels.bench.checks` is for it"
)


@pytest.fixture(autouse=True)
def last_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a grid of thousands, the last three."""

    def few(*bounds: int) -> range:
        return range(bounds[0] - 3, bounds[0]) if len(bounds) == 1 and bounds[0] > 5000 else builtins.range(*bounds)

    monkeypatch.setattr(interpreter, "range", few, raising=False)


def packed(shape: tuple[int, ...], nested: bool) -> Packed4bit:
    """Nothing but zeros before the last values, which are random."""
    torch.manual_seed(0)
    values = torch.Size(shape).numel()
    data = torch.zeros((values + 1) // 2, dtype=torch.uint8)
    data[-(2**16) :] = torch.randint(0, 256, (2**16,), dtype=torch.uint8)
    blocks = -(-values // 64)
    code = torch.linspace(-1, 1, 16)
    if not nested:
        absmax = torch.zeros(blocks)
        absmax[-(2**13) :] = torch.rand(2**13)
        return Packed4bit(data, absmax, code, 64, torch.Size(shape), torch.bfloat16)
    absmax = torch.zeros(blocks, dtype=torch.uint8)
    absmax[-(2**13) :] = torch.randint(0, 256, (2**13,), dtype=torch.uint8)
    second = torch.zeros(-(-blocks // 256))
    second[-64:] = torch.rand(64)
    scales = NestedScales(torch.linspace(-1, 1, 256), second, torch.tensor(0.1), 256)
    return Packed4bit(data, absmax, code, 64, torch.Size(shape), torch.bfloat16, scales)


def last_rows(weight: Packed4bit) -> Packed4bit:
    """Those that are looked at, as a weight of their own."""
    return rows_of(weight, ROWS - LAST, ROWS)


@pytest.mark.parametrize("nested", [True, False])
def test_dense_weight(nested: bool) -> None:
    """Rows side by side, and rows apart with what lies between them left alone."""
    weight = packed((ROWS, COLUMNS), nested)
    expected = reference(last_rows(weight), torch.bfloat16)
    for gap in (0, 8):
        whole = torch.empty((ROWS, COLUMNS + gap), dtype=torch.bfloat16)
        whole[-LAST:] = float("nan")
        dequantize_4bit.dequantize(weight, whole[:, :COLUMNS])
        assert torch.equal(expected, whole[-LAST:, :COLUMNS])
        assert bool(whole[-LAST:, COLUMNS:].isnan().all())


def test_values_that_fill_no_word() -> None:
    """The tail of a flat weight, whose first value is beyond 2^31."""
    values = 2**31 + 64 * 5 + 7
    weight = packed((1, values), nested=False)
    out = torch.empty((1, values), dtype=torch.bfloat16)
    out[0, -16:] = float("nan")
    dequantize_4bit.dequantize(weight, out)
    tail = 64 * 4 + 7
    bytes_ = weight.data[-(tail + 1) // 2 :].long()
    decoded = weight.code[torch.stack((bytes_ >> 4, bytes_ & 15), 1)].reshape(-1)[:tail]
    assert torch.equal((decoded * weight.absmax[-5:].repeat_interleave(64)[:tail]).to(torch.bfloat16), out[0, -tail:])


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("tokens", [1, 16])
def test_products(tokens: int, nested: bool) -> None:
    """One token, whose program takes rows alone, and 16."""
    weight = packed((ROWS, COLUMNS), nested)
    x = torch.randn(tokens, COLUMNS).bfloat16()
    y = torch.empty((tokens, ROWS), dtype=torch.bfloat16)
    y[:, -LAST:] = float("nan")
    linear_4bit.linear(x, weight, None, y)
    exact = x.double() @ reference(last_rows(weight), torch.float32).double().t()
    assert relative_error(y[:, -LAST:], exact) < 4e-3
