"""Storage formats: NF4's bits a weight, exactly."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneplan.planner.graph.tensor import BITS, BLOCK_BYTES, round_block
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.methods.formats import BLOCK_FORMATS, stored_bytes
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.training.settings import Settings


def tables(storage: str) -> int:
    """Bytes beside weights and scales, each tensor rounded up."""
    single = round_block(16 * 4)
    return single if storage in ("nf4", "fp4") else single + round_block(256 * 4) + round_block(4)


@pytest.mark.parametrize(
    ("storage", "bits"),
    [
        ("nf4-double", Fraction(4) + Fraction(8, 64) + Fraction(32, 64 * 256)),
        ("fp4-double", Fraction(4) + Fraction(8, 64) + Fraction(32, 64 * 256)),
        ("nf4", Fraction(4) + Fraction(32, 64)),
        ("fp4", Fraction(4) + Fraction(32, 64)),
    ],
)
@pytest.mark.parametrize("side", [4096, 8192])
def test_bits_a_weight(storage: str, bits: Fraction, side: int) -> None:
    """4 bits and a byte for 64 of them and a float for 256 of those (QLoRA, section 3), for a matrix without remainders."""
    count = side * side
    assert bits * count / 8 + tables(storage) == stored_bytes(count, storage)


@pytest.mark.parametrize(("dtype", "bits"), list(BITS.items()))
def test_plain_dtypes(dtype: str, bits: int) -> None:
    """Plain dtypes take their bits, rounded up to a block of the allocator."""
    assert 4096 * bits // 8 == stored_bytes(4096, dtype)
    assert BLOCK_BYTES == stored_bytes(1, dtype)


@given(count=st.integers(1, 2**28), storage=st.sampled_from(sorted(BLOCK_FORMATS)))
def test_remainders_are_rounded_up(count: int, storage: str) -> None:
    """A block that is not full takes a whole scale; the excess is less than a block of each tensor."""
    bits = Fraction(9, 2) if storage in ("nf4", "fp4") else 4 + Fraction(1, 8) + Fraction(1, 512)
    exact = bits * count / 8 + tables(storage)
    assert exact <= stored_bytes(count, storage) < exact + 3 * BLOCK_BYTES + 16


@given(st.integers(1, 2**24), st.integers(1, 2**12))
def test_larger_matrices_take_more(count: int, more: int) -> None:
    """No format gets smaller with more weights."""
    for storage in (*BLOCK_FORMATS, *BITS):
        assert stored_bytes(count, storage) <= stored_bytes(count + more, storage)


def test_double_quantization_saves_what_the_paper_says() -> None:
    """0.373 bits a weight, 3 GB for a 65B model (QLoRA, section 3)."""
    count = 8192 * 8192
    saved = Fraction(stored_bytes(count, "nf4") - stored_bytes(count, "nf4-double") + tables("nf4-double") - tables("nf4"))
    assert Fraction(32, 64) - Fraction(8, 64) - Fraction(32, 64 * 256) == saved * 8 / count
    assert 0.373 == pytest.approx(float(saved * 8 / count), abs=5e-4)


def test_qlora_of_70b_sums_its_tensors() -> None:
    """Every linear weight of Llama-2-70B but the head is in NF4; norms, embeddings and head are fp32 (k-bit preparation)."""
    network = build(read_spec(*load("70b")), parse("qlora"), Settings(seq_len=16))
    by_storage: dict[str, int] = {}
    for p in network.parameters:
        if not p.adapter:
            by_storage[p.storage] = by_storage.get(p.storage, 0) + p.numel
    linear = 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672)
    assert {"nf4-double": linear, "fp32": 68_976_648_192 - linear} == by_storage
