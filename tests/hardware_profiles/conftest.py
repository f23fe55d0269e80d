"""Files that the tests of user files and of the compile step start from."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneplan.hardware_profiles import compile as compile_module

DATA_FOLDERS = ("gpus", "instances", "prices")

GPU_TOML = """
id = "my-card"
name = "My card"
vendor = "nvidia"
architecture = "Ampere"
kind = "workstation"
aliases = ["mine"]
memory_basis = "cuda"
memory_bytes = { value = 25_769_803_776, source = "me", quote = "24 GiB" }
bandwidth_bytes_per_second = { value = 936e9, source = "me", quote = "936 GB/s" }

[peak_flops]
bf16 = { value = 71e12, source = "me", quote = "71 TFLOPS" }

[sources.me]
title = "My measurement"
reference = "my notes"
date = "2026-11-22"
"""


@pytest.fixture
def gpu_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes the GPU file above with one passage replaced."""

    def write(old: str = "", new: str = "") -> Path:
        assert old in GPU_TOML
        path = tmp_path / "my-card.toml"
        path.write_text(GPU_TOML.replace(old, new, 1) if old else GPU_TOML, encoding="utf-8")
        return path

    return write


@pytest.fixture
def price_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a price file."""

    def write(text: str) -> Path:
        path = tmp_path / "prices.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def data_copy(tmp_path: Path) -> Path:
    """A copy of the bundled data files that a test may break."""
    root = Path(compile_module.__file__).parent
    for folder in DATA_FOLDERS:
        shutil.copytree(root / folder, tmp_path / "data" / folder)
    return tmp_path / "data"
