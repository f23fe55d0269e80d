"""Values looked up by shuffles. No GPU is needed: the assembler is computed, and the gathered values are what it must give."""

import re

import numpy as np
import ptx
import pytest
import torch
import triton
import triton.language as tl
from kernel_cases import DEVICE
from numpy.typing import NDArray

from tuneplan.kernels.gpu import lookup

CODE = torch.randn(16, generator=torch.Generator().manual_seed(0))
TABLE = CODE.numpy().view(np.uint32)


def words() -> NDArray[np.uint32]:
    """All half words beside random ones, in both places."""
    every = np.arange(2**16, dtype=np.uint32)
    other = np.random.default_rng(0).integers(0, 2**16, 2**16, dtype=np.uint32)
    return np.concatenate([every | other << 16, other | every << 16])


def own(threads: int) -> NDArray[np.uint32]:
    """The value that each thread holds."""
    base = np.zeros(threads, np.uint32)
    return ptx.run(lookup.OWN.value, {"$1": base}, CODE.numpy())["$0"]


def nibbles(word: NDArray[np.uint32]) -> list[NDArray[np.uint32]]:
    """Of each word the eight half bytes in the order of its values."""
    return [(word >> (place // 2 * 8 + (1 - place % 2) * 4)) & 15 for place in range(8)]


def test_own_value() -> None:
    """Two threads of a warp hold each value."""
    assert np.array_equal(np.tile(TABLE, 8), own(128))


def test_values_of_words() -> None:
    """Eight fp32 values, the high half of each byte before the low one."""
    word = words()
    after = ptx.run(lookup.WORD.value, {"$8": word, "$9": own(word.size)})
    for place, nibble in enumerate(nibbles(word)):
        assert np.array_equal(TABLE[nibble], after[f"${place}"])


def test_values_of_bytes() -> None:
    """Four bytes: in fp32 the high halves and then the low ones; in 16 bits the same as pairs."""
    word = words()
    after = ptx.run(lookup.BYTES.value, {"$8": word, **{f"${number}": own(word.size) for number in range(9, 13)}})
    order = [after[f"${number}"] for pair in zip(range(4), range(4, 8), strict=True) for number in pair]
    for got, nibble in zip(order, nibbles(word), strict=True):
        assert np.array_equal(TABLE[nibble], got)

    # what lies above the 16 bits of a value is no part of it
    half = own(word.size) >> 16 | np.uint32(0xFFFF0000)
    after = ptx.run(lookup.PAIRS.value, {"$4": word, **{f"${number}": half for number in range(5, 9)}})
    bits = TABLE >> 16
    n = nibbles(word)
    for number, (first, second) in enumerate(((0, 2), (4, 6), (1, 3), (5, 7))):
        assert np.array_equal(bits[n[first]] | bits[n[second]] << 16, after[f"${number}"])


def test_operands() -> None:
    """As many as the assembler names; outputs are written before all inputs are read, and marked so."""
    for text, operands in (
        (lookup.WORD, lookup.WORD_OPERANDS),
        (lookup.PAIRS, lookup.PAIRS_OPERANDS),
        (lookup.BYTES, lookup.BYTES_OPERANDS),
    ):
        named = operands.value.split(",")
        assert len(named) > max(int(number) for number in re.findall(r"\$(\d+)", text.value))
        assert all(one.startswith("=&") for one in named if one.startswith("="))


@triton.jit
def _both(word, byte, code, of_words, of_bytes, COUNT: tl.constexpr):
    table = lookup.table_of(code)
    at = tl.arange(0, COUNT)
    values = lookup.values_of_words(tl.load(word + at), table)
    for place in tl.static_range(8):
        tl.store(of_words + at * 8 + place, values[place])
    at_bytes = tl.arange(0, COUNT * 4)
    high, low = lookup.values_of_bytes(tl.load(byte + at_bytes), table, of_bytes)
    tl.store(of_bytes + at_bytes * 2, high)
    tl.store(of_bytes + at_bytes * 2 + 1, low)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_programs(dtype: torch.dtype) -> None:
    """What a program makes of words and of their bytes, on a GPU by shuffles, in the interpreter by gathering."""
    word = torch.from_numpy(np.random.default_rng(1).integers(0, 2**32, 512, dtype=np.uint32).view(np.int32)).to(DEVICE)
    of_words = torch.zeros(512 * 8, device=DEVICE)
    kind = torch.float32 if DEVICE == "cpu" else dtype  # gathered values have the table's
    of_bytes = torch.zeros(512 * 8, dtype=kind, device=DEVICE)
    _both[(1,)](word, word.view(torch.uint8), CODE.to(DEVICE), of_words, of_bytes, COUNT=512)
    nibble = torch.from_numpy(np.stack(nibbles(word.cpu().numpy().view(np.uint32)), 1).astype(np.int64))
    expected = CODE[nibble].reshape(-1)
    assert torch.equal(expected, of_words.cpu())
    assert torch.equal(expected.to(kind), of_bytes.cpu())
