"""Values looked up by permuted bytes. No GPU is needed: the assembler is computed, the table is made in Triton's interpreter."""

import re

import numpy as np
import ptx
import pytest
import torch
import triton
import triton.language as tl
from kernel_cases import DEVICE

from tuneplan.kernels.gpu import lookup

CODES = {
    "nf4": [
        -1.0,
        -0.6962,
        -0.5251,
        -0.3949,
        -0.2844,
        -0.1848,
        -0.0911,
        0.0,
        0.0796,
        0.1609,
        0.2461,
        0.3379,
        0.4407,
        0.5626,
        0.7230,
        1.0,
    ],
    "fp4": [0.0, 0.0052, 0.6667, 1.0, 0.3333, 0.5, 0.1667, 0.25, -0.0, -0.0052, -0.6667, -1.0, -0.3333, -0.5, -0.1667, -0.25],
    "any bits": [float(number) for number in np.frombuffer(bytes(range(1, 33)), np.float16)],
}


def planes(code: list[float], dtype: torch.dtype) -> list[np.uint32]:
    """Eight numbers: the high bytes of 16 values, four to a number, and the low ones."""
    bits = torch.tensor(code).to(dtype).view(torch.uint8).reshape(16, 2).numpy()
    return [np.frombuffer(bits[four : four + 4, part].tobytes(), np.uint32)[0] for part in (1, 0) for four in range(0, 16, 4)]


def words() -> np.ndarray:
    """All half words beside random ones, in both places."""
    every = np.arange(2**16, dtype=np.uint32)
    other = np.random.default_rng(0).integers(0, 2**16, 2**16, dtype=np.uint32)
    return np.concatenate([every | other << 16, other | every << 16])


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_values_of_words(code: list[float]) -> None:
    """Eight fp32 values, the high half of each byte before the low one: those of the table, rounded to fp16."""
    word = words()
    table = {f"${9 + number}": np.full_like(word, plane) for number, plane in enumerate(planes(code, torch.float16))}
    after = ptx.run(lookup.WORD.value, {"$8": word, **table})
    rounded = np.array(code, np.float32).astype(np.float16).astype(np.float32).view(np.uint32)
    for place in range(8):
        nibble = (word >> (place // 2 * 8 + (1 - place % 2) * 4)) & 15
        assert np.array_equal(rounded[nibble], after[f"${place}"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_values_of_bytes(code: list[float], dtype: torch.dtype) -> None:
    """Two values for each of four bytes, as pairs of 16 bits; each number of the table is given once for each byte."""
    word = words()
    table = {
        f"${5 + 4 * number + copy}": np.full_like(word, plane)
        for number, plane in enumerate(planes(code, dtype))
        for copy in range(4)
    }
    after = ptx.run(lookup.BYTES.value, {"$4": word, **table})
    bits = torch.tensor(code).to(dtype).view(torch.int16).numpy().view(np.uint16).astype(np.uint32)
    for half, shift in ((0, 4), (2, 0)):
        for pair in range(2):
            first, second = ((word >> (byte * 8 + shift)) & 15 for byte in (2 * pair, 2 * pair + 1))
            assert np.array_equal(bits[first] | bits[second] << 16, after[f"${half + pair}"])


def test_operands() -> None:
    """As many as the assembler names; outputs are written before all inputs are read, and marked so."""
    for text, operands in ((lookup.WORD, lookup.WORD_OPERANDS), (lookup.BYTES, lookup.BYTES_OPERANDS)):
        named = operands.value.split(",")
        assert len(named) > max(int(number) for number in re.findall(r"\$(\d+)", text.value))
        assert all(one.startswith("=&") for one in named if one.startswith("="))


@triton.jit
def _tables(code, out):
    table = lookup.table_of(code, tl.float16)
    for number in tl.static_range(8):
        tl.store(out + number, table[number])


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_table(code: list[float]) -> None:
    """The eight numbers that a program makes of the 16 values."""
    out = torch.zeros(8, dtype=torch.int32, device=DEVICE)
    _tables[(1,)](torch.tensor(code, device=DEVICE), out)
    assert planes(code, torch.float16) == out.cpu().numpy().view(np.uint32).tolist()
