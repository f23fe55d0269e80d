"""4-bit dequantization: every implementation gives the same bits."""

import itertools
from dataclasses import replace
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from kernel_cases import DEVICE, FLOATS, apart, bits, quantized

from tuneplan.kernels.dequantize_4bit import dequantize_4bit, reference
from tuneplan.kernels.errors import KernelInputError, KernelUnavailableError
from tuneplan.kernels.packed import Packed4bit, operator_parts

SHAPES = ((64, 64), (5, 33), (3, 7), (1, 4096), (300, 128), (17, 40))
CASES = list(itertools.product(SHAPES, ("nf4", "fp4"), (32, 64, 256, 4096), (True, False)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backends_equal_the_reference_bit_by_bit(shape: tuple[int, int]) -> None:
    """NF4 and FP4, four block sizes, quantized scales or not, three types: whole words, tails, and rows shorter than a block."""
    for _, quant_type, blocksize, nested in (case for case in CASES if case[0] == shape):
        data, state = quantized(*shape, quant_type, blocksize, nested)
        for dtype in FLOATS:
            expected = reference(Packed4bit.of(data, state), dtype)
            for backend in ("triton", "torch"):
                assert torch.equal(bits(expected), bits(dequantize_4bit(data, state, dtype=dtype, backend=backend)))


@pytest.mark.parametrize(("columns", "gap"), [(64, 9), (64, 8), (33, 9)])
def test_rows_may_be_apart(columns: int, gap: int) -> None:
    """A part of a wider buffer is written, and nothing beside it: in whole words that lie well or not, and where rows are not."""
    data, state = quantized(70, columns)
    for dtype, backend in itertools.product(FLOATS, ("triton", "torch")):
        whole, part = apart(70, columns, dtype, gap)
        assert part is dequantize_4bit(data, state, out=part, backend=backend)
        assert torch.equal(bits(reference(Packed4bit.of(data, state), dtype)), bits(part))
        assert whole[:, columns:].isnan().all()


def test_rows_apart_that_begin_anywhere() -> None:
    """The first value does not lie at a multiple of 16 bytes, though rows are whole words apart."""
    data, state = quantized(70, 64)
    for dtype in FLOATS:
        whole = torch.full((70, 72), float("nan"), dtype=dtype, device=DEVICE)
        dequantize_4bit(data, state, out=whole[:, 1:65], backend="triton")
        assert torch.equal(bits(reference(Packed4bit.of(data, state), dtype)), bits(whole[:, 1:65].contiguous()))
        assert whole[:, [0, *range(65, 72)]].isnan().all()


@pytest.mark.parametrize(("backend", "shape"), [("triton", (33, 768)), ("torch", (301, 2049)), ("torch", (256, 1024))])
def test_more_than_one_program(backend: str, shape: tuple[int, int]) -> None:
    """A weight of several programs, or of several pieces on a CPU, with a last one that is not full or just so."""
    data, state = quantized(*shape)
    assert torch.equal(
        bits(reference(Packed4bit.of(data, state), torch.bfloat16)),
        bits(dequantize_4bit(data, state, dtype=torch.bfloat16, backend=backend)),
    )


@pytest.mark.parametrize("words", [256, 2048])
def test_every_launch_gives_the_same_bits(words: int) -> None:
    """Tile sizes change the speed only; also where a block is larger than a program."""
    from tuneplan.kernels.gpu.dequantize_4bit import dequantize

    for blocksize in (64, 4096):
        packed = Packed4bit.of(*quantized(24, 512, blocksize=blocksize))
        out = torch.full((24, 512), float("nan"), device=DEVICE)
        dequantize(packed, out, words=words, warps=8)
        assert torch.equal(bits(reference(packed, torch.float32)), bits(out))


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16, torch.float32])
def test_any_storage_dtype(storage: torch.dtype) -> None:
    """`bnb_4bit_quant_storage` changes the dtype of the bytes, not the bytes."""
    data, state = quantized(16, 64, quant_storage=storage)
    assert storage == data.dtype
    for backend in ("triton", "torch"):
        assert torch.equal(
            bits(reference(Packed4bit.of(data, state), torch.float32)), bits(dequantize_4bit(data, state, backend=backend))
        )


def test_bytes_that_are_not_aligned_to_words() -> None:
    """A packed weight that begins within a word, as a slice of a flat checkpoint does."""
    data, state = quantized(16, 64)
    shifted = torch.cat([torch.zeros(1, 1, dtype=torch.uint8, device=DEVICE), data])[1:]
    assert shifted.data_ptr() % 4
    assert torch.equal(dequantize_4bit(data, state), dequantize_4bit(shifted, state, backend="triton"))


@pytest.mark.parametrize("case", [case for case in CASES if case[0][1] % case[2] == 0], ids=str)
def test_bitsandbytes_gives_the_same_bits(case: Any) -> None:
    """Where rows are whole blocks; its code for CPUs with AVX-512 is wrong elsewhere."""
    shape, quant_type, blocksize, nested = case
    data, state = quantized(*shape, quant_type, blocksize, nested)
    for dtype in FLOATS:
        state.dtype = dtype
        assert torch.equal(bnb.dequantize_4bit(data, state), dequantize_4bit(data, state, backend="torch"))


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_the_result_carries_no_gradient(backend: str) -> None:
    """Also where a table or the scales are trained, into rows side by side and apart."""
    packed = Packed4bit.of(*quantized(16, 64, nested=False))
    trained = replace(packed, code=packed.code.clone().requires_grad_(), absmax=packed.absmax.clone().requires_grad_())
    _, part = apart(16, 64, torch.float32)
    for out in (None, part):
        found = dequantize_4bit(trained.data, trained, dtype=torch.float32, out=out, backend=backend)
        assert not found.requires_grad
        assert torch.equal(reference(packed, torch.float32), found)


def test_scales_are_rounded_after_each_step() -> None:
    """A product and sum in one rounding would change scales of these weights, so that the tests above would see it."""
    packed = Packed4bit.of(*quantized(256, 256))
    nested = packed.nested
    assert nested is not None
    second = nested.absmax[torch.arange(packed.absmax.numel(), device=DEVICE) // nested.blocksize]
    once = (nested.code[packed.absmax.long()].double() * second.double() + nested.offset.double()).float()
    twice = nested.code[packed.absmax.long()] * second + nested.offset
    assert 0.01 < (once != twice).float().mean()


def test_op_under_torch_tools() -> None:
    """Schema, fake tensors and the dispatch of autograd are right (`torch.library.opcheck`)."""
    packed = Packed4bit.of(*quantized(16, 48))
    out = torch.empty(16, 48, device=DEVICE)
    torch.library.opcheck(torch.ops.tuneplan.dequantize_4bit, (*operator_parts(packed), [16, 48], out, "auto"))


@pytest.mark.parametrize("nested", [True, False])
def test_compiles_in_one_graph(nested: bool) -> None:
    """`torch.compile(fullgraph=True)`, with a result of its own and with `out`."""
    data, state = quantized(16, 48, nested=nested)

    def double(data: torch.Tensor) -> torch.Tensor:
        out = torch.empty(16, 48, device=data.device)
        return dequantize_4bit(data, state) + dequantize_4bit(data, state, out=out)

    compiled = torch.compile(double, fullgraph=True, backend="aot_eager")
    assert torch.equal(2 * dequantize_4bit(data, state), compiled(data))


def test_on_the_meta_device() -> None:
    """Shape and dtype without values, so that a model can be traced."""
    data, state = quantized(16, 48)
    state.to("meta")
    out = dequantize_4bit(data.to("meta"), state, dtype=torch.bfloat16)
    assert ((16, 48), torch.bfloat16, "meta") == (tuple(out.shape), out.dtype, out.device.type)


def test_empty() -> None:
    """A weight without values."""
    packed = Packed4bit(
        torch.empty(0, dtype=torch.uint8), torch.empty(0), torch.zeros(16), 64, torch.Size((0, 64)), torch.float32
    )
    assert (0, 64) == dequantize_4bit(packed.data, packed, backend="torch").shape


def _changed(**parts: Any) -> Any:
    data, state = quantized(16, 64)
    for name, value in parts.items():
        setattr(state, name, value)
    return data, state


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"blocksize": 48}, "block size 48"),
        ({"quant_type": "int4"}, "not a 4-bit format"),
        ({"shape": torch.Size((16, 128))}, "need 1024 packed bytes, the weight has 512"),
        ({"absmax": torch.zeros(16)}, "absmax must be"),
        ({"absmax": torch.zeros(7, dtype=torch.uint8)}, "absmax must be"),
        ({"code": torch.zeros(256)}, "code must be"),
        ({"offset": torch.zeros(1)}, "offset must be"),
        ({"dtype": torch.int8}, "quantized from torch.int8"),
        ({"shape": None}, "lacks shape"),
        ({"code": torch.zeros(16, device="meta")}, "lies on meta"),
    ],
)
def test_states_that_do_not_fit(parts: dict[str, Any], words: str) -> None:
    """A quant state that does not belong to the weight is refused before any launch."""
    with pytest.raises(KernelInputError, match=words):
        dequantize_4bit(*_changed(**parts))


def test_wrong_data_and_out() -> None:
    """Packed bytes and results of a shape, dtype, device or layout that cannot be."""
    data, state = quantized(16, 64)
    with pytest.raises(KernelInputError, match="not contiguous"):
        dequantize_4bit(torch.zeros(1024, 2, dtype=torch.uint8, device=DEVICE)[:, :1], state)
    with pytest.raises(KernelInputError, match="has no quant_state"):
        dequantize_4bit(data, None)
    with pytest.raises(KernelInputError, match="cannot be decoded"):
        dequantize_4bit(data, state, dtype=torch.int8)
    for out, words in (
        (torch.empty(16, 63, device=DEVICE), "out has the shape"),
        (torch.empty(16, 64, device="meta"), "out lies on meta"),
        (torch.empty(64, 16, device=DEVICE).t(), "side by side"),
        (torch.empty(1, 64, device=DEVICE).expand(16, 64), "side by side"),
        (torch.empty(16, 64, device=DEVICE, requires_grad=True), "needs a gradient"),
    ):
        with pytest.raises(KernelInputError, match=words):
            dequantize_4bit(data, state, out=out)
    with pytest.raises(KernelInputError, match=r"out is torch.float32, asked for was torch.float16"):
        dequantize_4bit(data, state, dtype=torch.float16, out=torch.empty(16, 64, device=DEVICE))


def test_backends() -> None:
    """Names that are none, and Triton where it cannot run."""
    data, state = quantized(16, 64)
    with pytest.raises(KernelInputError, match="unknown backend 'cuda'"):
        dequantize_4bit(data, state, backend="cuda")
    state.to("meta")
    with pytest.raises(KernelUnavailableError, match="the tensors lie on meta"):
        dequantize_4bit(data.to("meta"), state, backend="triton")


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU: 2^31 values are 4 GiB of bf16")
def test_more_values_than_32_bits_count() -> None:
    """Values beyond 2^31 are decoded where they belong."""
    rows, columns = 2**20 + 8, 2**11
    data = torch.randint(0, 256, (rows * columns // 2, 1), dtype=torch.uint8, device=DEVICE)
    absmax = torch.rand(rows * columns // 64, device=DEVICE)
    code = torch.linspace(-1, 1, 16, device=DEVICE)
    packed = Packed4bit(data, absmax, code, 64, torch.Size((rows, columns)), torch.bfloat16)
    out = dequantize_4bit(data, packed, dtype=torch.bfloat16)
    tail = slice(-4 * columns // 2, None)
    last = Packed4bit(data[tail], absmax[-4 * columns // 64 :], code, 64, torch.Size((4, columns)), torch.bfloat16)
    assert torch.equal(reference(last, torch.bfloat16), out[-4:])


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")
def test_in_a_cuda_graph_and_on_another_stream() -> None:
    """A captured launch replays, and a launch on a side stream follows that stream."""
    data, state = quantized(128, 256)
    expected = dequantize_4bit(data, state, backend="torch")
    out = torch.zeros_like(expected)
    dequantize_4bit(data, state, out=out)
    torch.cuda.synchronize()
    out.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        dequantize_4bit(data, state, out=out)
    assert not out.any()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(expected, out)
    out.zero_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        dequantize_4bit(data, state, out=out)
    stream.synchronize()
    assert torch.equal(expected, out)
