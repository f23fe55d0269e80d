"""The programs as the compiler leaves them, for five generations of cards, without any of them.

A kernel that spills, loads bytes one by one or needs more instructions than the memory leaves time for is slow on every card;
that is seen here before it is timed anywhere.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tuneplan.kernels.compiled import assembly
from tuneplan.kernels.compiled_programs import ARCHITECTURES
from tuneplan.kernels.errors import KernelUnavailableError

ROOT = Path(__file__).parents[2]
MOST_INSTRUCTIONS = {
    "dequantize_4bit": 5.5,
    "dequantize_4bit, rows apart": 11.0,
    "dequantize_8bit": 8.0,
    "dequantize_8bit_rows": 5.5,
    "linear_4bit, 1 token": 5.0,
    "linear_4bit, 1 token, 1024 rows": 6.0,
    "linear_4bit, 16 tokens": 6.5,
    "linear_4bit, 64 tokens": 11.0,
    "lora_grad, rank 16, bf16 adapter": 4.0,
    "lora_grad, rank 32, bf16 adapter": 4.5,
    "lora_grad, rank 16, fp32 adapter": 9.5,
    "lora_grad, rank 32, fp32 adapter": 17.0,
}
"""A value of the weight, or of the gradient. An H200 has time for 17.5 while it decodes to bf16; bitsandbytes 0.50 takes 26.3."""
NARROWER_LOADS = {
    "dequantize_4bit": 32,
    "dequantize_4bit, rows apart": 32,
    "linear_4bit, 1 token": 64,
    "linear_4bit, 1 token, 1024 rows": 64,
}
"""Bits that a thread loads of the weight, where it is not 128: a warp reads 128 or 256 bytes at once all the same. What a thread
decodes is then one store of 128 bits, and what it reads of x serves twice as many rows."""

SHARED_BYTES = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""Shared memory that a block may have (CUDA C++ Programming Guide, technical specifications per compute capability)."""


def compiled(architecture: int) -> dict[str, Any]:
    """Each program, compiled in a process of its own: this one interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "tuneplan.kernels.compiled_programs", "--json", "--architecture", str(architecture)]
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return {row["name"]: row for row in map(json.loads, result.stdout.splitlines())}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_programs(architecture: int) -> None:
    """Few instructions a value, no register in local memory, wide loads. No program is without a limit.

    What is decoded is stored 16 bytes at a time, each step rounded; products of several tokens run on tensor cores. All threads
    take part in every shuffle.
    """
    rows = compiled(architecture)
    assert set(MOST_INSTRUCTIONS) == set(rows)
    assert [] == [name for name, most in MOST_INSTRUCTIONS.items() if rows[name]["instructions_a_value"] > most]
    assert [] == [name for name, row in rows.items() if row["spilled"]]
    assert [] == [name for name, row in rows.items() if row["shared_bytes"] > SHARED_BYTES[architecture]]
    assert set(NARROWER_LOADS) == {name for name, row in rows.items() if not row["loads_128_bits"]}
    assert [] == [name for name, bits in NARROWER_LOADS.items() if not rows[name][f"loads_{bits}_bits"]]
    # the scales are bytes, one for each 64 values; the weight is not read so
    assert [] == [name for name in NARROWER_LOADS if rows[name]["loads_narrower"] > 2]
    decoders = [row for name, row in rows.items() if name.startswith("dequantize")]
    assert [] == [row for row in decoders if not row["stores_128_bits"] or row["stores_narrower"] or row["contracted"]]
    assert {0} == {row["partial_shuffles"] for row in rows.values()}
    assert [] == [name for name, row in rows.items() if name.startswith("linear_4bit") and not row["shuffles"]]
    products = [row for name, row in rows.items() if name.endswith("tokens") or name.startswith("lora_grad")]
    assert [] == [row for row in products if not row["tensor_core"]]


def test_interpreted_programs_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said at once, not by an error of Triton."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(KernelUnavailableError, match="TRITON_INTERPRET is set"):
        assembly(None, {}, {}, 90)
