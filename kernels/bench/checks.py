"""What must hold of the kernels on a GPU beyond what is checked before each timing: odd shapes, sizes, streams, graphs.

Results lie in buffers that held no number before. Where the tensors lie on a CPU the same runs through plain torch, and what
needs a GPU is left out.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch

from tuneplan.kernels.bench.cases import DTYPES, Case
from tuneplan.kernels.bench.clocks import free
from tuneplan.kernels.bench.implementations.dequantize_4bit import bitsandbytes_refuses
from tuneplan.kernels.bench.implementations.linear_4bit import Inputs
from tuneplan.kernels.bench.kernel import same
from tuneplan.kernels.bench.machine import Machine
from tuneplan.kernels.bench.registry import KERNELS
from tuneplan.kernels.bench.rows import FAILED, MEASURED, NOT_RUN, WRONG, Row, row
from tuneplan.kernels.bench.shapes import Shape
from tuneplan.kernels.bench.weights import NESTED_BLOCK, packed_4bit
from tuneplan.kernels.dequantize_4bit import dequantize_4bit, reference
from tuneplan.kernels.linear_4bit import linear_4bit
from tuneplan.kernels.packed import NestedScales, Packed4bit

Check = Callable[[Machine], None]
SEED = 3
_VARIANTS: tuple[dict[str, Any], ...] = (
    {"format": "nf4"},
    {"format": "fp4"},
    {"nested": False},
    {"dtype": "fp16"},
    {"dtype": "fp32"},
)


class NotHereError(Exception):
    """A check that this machine cannot run."""


class WrongError(Exception):
    """What a check found."""


def _case(rows: int, columns: int, **more: Any) -> Case:
    return Case("dequantize_4bit", Shape(rows, columns), **more)


def _expect(got: torch.Tensor, right: torch.Tensor, what: str) -> None:
    if not same(got, right):
        wrong = int((got != right).sum()) if got.shape == right.shape else -1
        raise WrongError(f"{what}: {wrong} of {got.numel()} values differ from the reference")


def _within(case: Case, inputs: Any, result: Any) -> None:
    """Raises WrongError for a result of this package's that is outside the bound of its kernel."""
    kernel = KERNELS[case.kernel]
    reason = kernel.check(case, "tuneplan", result, kernel.expected(case, inputs)).reason
    if reason:
        raise WrongError(f"{case.label}: {reason}")


def _gpu(machine: Machine) -> None:
    if not machine.on_gpu:
        raise NotHereError("it needs a GPU")


def _poisoned(packed: Packed4bit, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(tuple(packed.shape), float("nan"), dtype=dtype, device=packed.device)


def _every_format(machine: Machine) -> Iterator[tuple[Case, Packed4bit]]:
    """One row, one column, odd sizes, a vocabulary; every format, dtype and block size of the small ones."""
    large = [(1024, 4096), (28672, 8192), (128256, 4096)] if machine.on_gpu else [(64, 256)]
    for size in [(1, 4096), (4096, 1), (17, 33), (5, 4096), *large]:
        small = size[0] * size[1] < 2**23
        for variant in _VARIANTS if small else _VARIANTS[:1]:
            for blocksize in (32, 64, 128, 4096) if small else (64,):
                case = _case(*size, **{**variant, "blocksize": blocksize})
                yield case, packed_4bit(case, machine.device, SEED)
        free(machine.device)


def shapes(machine: Machine) -> None:
    """One row, one column, odd sizes, a vocabulary: equal to the reference in every format, dtype and block size."""
    for case, packed in _every_format(machine):
        kind = DTYPES[case.dtype]
        _expect(dequantize_4bit(packed.data, packed, out=_poisoned(packed, kind)), reference(packed, kind), case.label)


def like_bitsandbytes(machine: Machine) -> None:
    """The same weights: equal to bitsandbytes where it can decode them."""
    if find_spec("bitsandbytes") is None:
        raise NotHereError("bitsandbytes is not installed")
    for case, packed in _every_format(machine):
        if not bitsandbytes_refuses(case, machine.device):
            other = KERNELS["dequantize_4bit"].implementations["bitsandbytes"].prepare(case, packed)(None)
            _expect(dequantize_4bit(packed.data, packed, dtype=DTYPES[case.dtype]), other.reshape(packed.shape), case.label)


def rows_apart(machine: Machine) -> None:
    """A buffer whose rows are apart gets the weight; what lies between the rows is left alone."""
    for (rows, columns), gap in itertools.product([(64, 256), (17, 40), (9, 33)], [24, 9]):
        packed = packed_4bit(_case(rows, columns), machine.device, SEED)
        wide = torch.full((rows, columns + gap), 7.0, dtype=torch.bfloat16, device=machine.device)
        dequantize_4bit(packed.data, packed, out=wide[:, :columns])
        _expect(wide[:, :columns].contiguous(), reference(packed, torch.bfloat16), f"{rows} x {columns}, {gap} apart")
        _expect(wide[:, columns:].contiguous(), torch.full_like(wide[:, columns:], 7.0).contiguous(), "between the rows")


def beyond_32_bits(machine: Machine) -> None:
    """More than 2^31 values: the first rows, those around the border and the last ones; side by side, apart, and multiplied."""
    _gpu(machine)
    columns = 2**14
    size = 2**17 + 64
    packed = packed_4bit(_case(size, columns), machine.device, SEED)
    out = dequantize_4bit(packed.data, packed, out=_poisoned(packed, torch.bfloat16))
    wide = torch.full((size, columns + 8), float("nan"), dtype=torch.bfloat16, device=machine.device)
    dequantize_4bit(packed.data, packed, out=wide[:, :columns])
    torch.manual_seed(SEED)
    tokens = [torch.randn(number, columns, dtype=torch.bfloat16, device=machine.device) for number in (1, 16)]
    products = [linear_4bit(x, packed.data, packed) for x in tokens]
    border = 2**31 // columns
    for first in (0, border - 32, size - 64):
        rows = slice(first, first + 64)
        part = rows_of(packed, first, first + 64)
        right = reference(part, torch.bfloat16)
        _expect(out[rows], right, f"rows from {first}")
        _expect(wide[rows, :columns].contiguous(), right, f"rows apart from {first}")
        for x, product in zip(tokens, products, strict=True):
            _within(Case("linear_4bit", Shape(64, columns), tokens=len(x)), Inputs(part, x), product[:, rows])


def rows_of(packed: Packed4bit, first: int, last: int) -> Packed4bit:
    """Some rows of a weight, which begin with a group of nested scales."""
    columns = packed.shape[1]
    start, end = first * columns, last * columns
    blocks = slice(start // packed.blocksize, -(-end // packed.blocksize))
    nested = packed.nested
    if nested is not None:
        if start % (packed.blocksize * NESTED_BLOCK):
            raise ValueError(f"row {first} does not begin with a group of scales")
        groups = slice(blocks.start // nested.blocksize, -(-blocks.stop // nested.blocksize))
        nested = NestedScales(nested.code, nested.absmax[groups], nested.offset, nested.blocksize)
    data = packed.data[start // 2 : (end + 1) // 2]
    return replace(packed, data=data, absmax=packed.absmax[blocks], shape=torch.Size((last - first, columns)), nested=nested)


def rounded_step_by_step(machine: Machine) -> None:
    """Scales are rounded after each step. Control: fused to one rounding, some of these results would differ."""
    packed = packed_4bit(_case(256, 1024, dtype="fp32"), machine.device, SEED)
    nested = packed.nested
    if nested is None:
        raise ValueError("the weight has flat scales")
    group = torch.arange(packed.absmax.numel(), device=machine.device) // nested.blocksize
    exact = nested.code[packed.absmax.int()].double() * nested.absmax[group].double() + nested.offset.double()
    fused = replace(packed, absmax=exact.float(), nested=None)
    right = reference(packed, torch.float32)
    if same(reference(fused, torch.float32), right):
        raise WrongError("the control does not tell a fused scale from one rounded step by step")
    _expect(dequantize_4bit(packed.data, packed, out=_poisoned(packed, torch.float32)), right, "fp32")


def tiny_scales(machine: Machine) -> None:
    """Scales near the least normal number, and zero: as the reference where its results are normal, else 0 or it."""
    packed = packed_4bit(_case(64, 256, nested=False, dtype="fp32"), machine.device, SEED)
    scales = torch.full_like(packed.absmax, 2e-38)
    scales[::2] = 0.0
    packed = replace(packed, absmax=scales)
    right = reference(packed, torch.float32)
    got = dequantize_4bit(packed.data, packed, out=_poisoned(packed, torch.float32))
    normal = right.abs() >= torch.finfo(torch.float32).tiny
    _expect(torch.where(normal, got, 0.0), torch.where(normal, right, 0.0), "normal results")
    if not bool(((got == right) | (got == 0))[~normal].all()):
        raise WrongError("a result below the normal numbers is neither 0 nor the reference's")


def other_stream(machine: Machine) -> None:
    """On a stream of its own, after a kernel that writes the packed weight there."""
    _gpu(machine)
    packed = packed_4bit(_case(1024, 4096), machine.device, SEED)
    right = reference(packed, torch.bfloat16)
    late = torch.zeros_like(packed.data)
    stream = torch.cuda.Stream(machine.device)
    torch.cuda.synchronize(machine.device)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(packed.data)
        out = dequantize_4bit(late, replace(packed, data=late), out=_poisoned(packed, torch.bfloat16))
    stream.synchronize()
    _expect(out, right, "another stream")


def captured(machine: Machine) -> None:
    """In a CUDA graph: a replay after the weight changed gives the new weight."""
    _gpu(machine)
    first, second = (packed_4bit(_case(1024, 4096), machine.device, seed) for seed in (SEED, SEED + 1))
    packed = replace(first, data=first.data.clone(), absmax=first.absmax.clone())
    out = _poisoned(packed, torch.bfloat16)
    dequantize_4bit(packed.data, packed, out=out)
    torch.cuda.synchronize(machine.device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        dequantize_4bit(packed.data, packed, out=out)
    packed.data.copy_(second.data)
    packed.absmax.copy_(second.absmax)
    graph.replay()
    torch.cuda.synchronize(machine.device)
    _expect(out, reference(replace(second, nested=packed.nested), torch.bfloat16), "a replay")


def products_captured(machine: Machine) -> None:
    """Products of 1 and 16 tokens in a CUDA graph and in torch.compile: the bits of a plain call, for tokens that came later."""
    _gpu(machine)
    packed = packed_4bit(_case(1024, 4096), machine.device, SEED)
    torch.manual_seed(SEED)
    for tokens in (1, 16):
        x, later = (torch.randn(tokens, 4096, dtype=torch.bfloat16, device=machine.device) for _ in range(2))
        right = linear_4bit(later, packed.data, packed)
        linear_4bit(x, packed.data, packed)
        torch.cuda.synchronize(machine.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = linear_4bit(x, packed.data, packed)
        x.copy_(later)
        graph.replay()
        torch.cuda.synchronize(machine.device)
        _expect(out, right, f"a replay with {tokens} tokens")
        torch.compiler.reset()
        compiled = torch.compile(lambda x: linear_4bit(x, packed.data, packed) * 1, fullgraph=True)
        _expect(compiled(later), right, f"torch.compile with {tokens} tokens")


def compiled_whole(machine: Machine) -> None:
    """Inside torch.compile without a break of the graph."""
    _gpu(machine)
    packed = packed_4bit(_case(1024, 4096), machine.device, SEED)

    def run(data: torch.Tensor) -> torch.Tensor:
        return dequantize_4bit(data, packed) * 1

    torch.compiler.reset()
    _expect(torch.compile(run, fullgraph=True)(packed.data), reference(packed, torch.bfloat16), "torch.compile")


def second_device(machine: Machine) -> None:
    """On another card than the current one."""
    if not machine.on_gpu or torch.cuda.device_count() < 2:
        raise NotHereError("it needs two GPUs")
    other = torch.device("cuda", 1 if machine.device.index == 0 else 0)
    packed = packed_4bit(_case(1024, 4096), other, SEED)
    _expect(dequantize_4bit(packed.data, packed), reference(packed, torch.bfloat16), "another device")


def other_kernels(machine: Machine) -> None:
    """8-bit weights, products of 1 to 65 tokens and adapted layers at odd sizes, each within its kernel's bound."""
    cases = [
        *(Case("dequantize_8bit", Shape(17, 33), "int8_rows", nested=False, blocksize=0, dtype=kind) for kind in DTYPES),
        *(Case("dequantize_8bit", Shape(17, 33), "int8_blocks", nested=False, blocksize=64, dtype=kind) for kind in DTYPES),
        *(
            Case("linear_4bit", Shape(rows, 512), tokens=tokens, dtype=kind)
            for rows in (17, 256)
            for tokens in (1, 2, 5, 17, 33, 64, 65)
            for kind in ("bf16", "fp16")
        ),
        *(
            Case("linear_4bit", Shape(2500 if machine.on_gpu else 40, 2496), format, tokens=tokens, dtype=kind)
            for format in ("nf4", "fp4")
            for tokens in (1, 16)
            for kind in DTYPES
        ),
        *(Case("linear_4bit", Shape(40, 96), tokens=tokens) for tokens in (1, 3)),
        *(Case("lora_linear", Shape(72, 128), tokens=tokens, rank=rank) for tokens in (1, 33) for rank in (4, 16)),
    ]
    for case in cases:
        kernel = KERNELS[case.kernel]
        inputs = kernel.inputs(case, machine.device, SEED)
        out = kernel.output(case, machine.device)
        if out is not None:
            out.fill_(float("nan"))
        _within(case, inputs, kernel.implementations["tuneplan"].prepare(case, inputs)(out))


CHECKS: dict[str, Check] = {
    one.__name__: one
    for one in (
        shapes,
        like_bitsandbytes,
        rounded_step_by_step,
        rows_apart,
        tiny_scales,
        other_kernels,
        other_stream,
        captured,
        compiled_whole,
        products_captured,
        beyond_32_bits,
        second_device,
    )
}


def run_check(name: str, machine: Machine) -> list[Row]:
    """A row that says whether one of them holds."""
    check = CHECKS[name]
    state, reason = MEASURED, None
    try:
        check(machine)
    except NotHereError as error:
        state, reason = NOT_RUN, str(error)
    except WrongError as error:
        state, reason = WRONG, str(error)
    except Exception as error:  # whatever a compiler or a driver raises is the row's reason
        state, reason = FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    free(machine.device)
    return [row("check", name, machine.provenance, what=check.__doc__, state=state, reason=reason)]
