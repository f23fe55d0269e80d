"""Exported files through the parsers of the tools they are for, where the tool is installed; see docs/export.md."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import own_parsers
import pytest

from tuneplan.planner.cli.main import run

pytest.importorskip("yaml")

EIGHT = ("--gpus", "8", "--zero-stage", "3")
AUTOCAST = ("--precision", "autocast")
CASES = [
    ("axolotl", "axolotl", ("--method", "qlora(r=16)", "--attention", "flash", *AUTOCAST), {"lora_r": 16, "adapter": "qlora"}),
    (
        "axolotl",
        "axolotl",
        ("--method", "full", "--attention", "flash", "--gpus", "8"),
        {"deepspeed": "deepspeed.json", "bf16": True},
    ),
    (
        "llama_factory",
        "llama-factory",
        (
            "--method",
            "qlora(r=16)",
        ),
        {"lora_rank": 16, "quantization_bit": 4},
    ),
    ("torchtune", "torchtune", ("--method", "lora", "--loss", "chunked"), {"parameters": 8_051_232_768}),
    ("skypilot", "trl", ("--method", "lora", "--skypilot"), {"name": "tuneplan-meta-llama-3-1-8b"}),
    ("deepspeed", "trl", ("--method", "full", "--gpus", "8"), {"bf16": True}),
    ("accelerate", "trl", ("--method", "lora", *EIGHT), {"type": "FSDP", "processes": 8}),
]
MODULES = {"llama_factory": "llamafactory", "skypilot": "sky"}


@pytest.mark.parametrize(
    ("tool", "name", "words", "said"), CASES, ids=[f"{tool} {' '.join(words)}" for tool, _, words, _ in CASES]
)
def test_tools_read_what_was_written(tmp_path: Path, tool: str, name: str, words: tuple[str, ...], said: dict[str, Any]) -> None:
    """The tool accepts the file, and understands it as it was meant."""
    if find_spec(MODULES.get(tool, tool)) is None:
        pytest.skip(f"{tool} is not installed")
    one = () if "--gpus" in words else ("--gpus", "1")
    assert 0 == run(
        ["export", "--model", "8b", "--gpu", "a100-80g", "--format", name, "--out", str(tmp_path / "run"), *one, *words]
    )
    directory = Path.cwd()
    try:
        found = own_parsers.PARSERS[tool](tmp_path / "run")
    finally:
        os.chdir(directory)
    assert said == {key: found.get(key) for key in said}
