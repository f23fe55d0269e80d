"""The device that kernels are timed on, and where its rows come from."""

import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tuneplan.hardware_profiles import this_machine
from tuneplan.kernels.errors import KernelInputError

DEVICES = ("auto", "cuda", "cpu")
LIBRARIES = ("torch", "triton", "bitsandbytes", "peft", "transformers", "torchao", "unsloth", "pytest-benchmark")


@dataclass(frozen=True, slots=True)
class Machine:
    """A device.

    Args:
        device: for torch.
        name: of the card or the processor.
        provenance: date, command, commit, driver, CUDA and versions.
    """

    device: torch.device
    name: str
    provenance: dict[str, Any]

    @property
    def on_gpu(self) -> bool:
        """Whether CUDA graphs and events time its kernels."""
        return self.device.type == "cuda"

    @property
    def folder(self) -> str:
        """The name of its folder of results, such as `h200` or `cpu-amd-epyc`."""
        words = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-").removeprefix("nvidia-")
        return words if self.on_gpu else f"cpu-{words}"


def free_bytes(device: torch.device) -> int | None:
    """Memory that a process may still take: of a card, or of the host; None where the host does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = (line.split() for line in lines if line.startswith("MemAvailable:"))
    return next((int(words[1]) * 2**10 for words in found), None)


def machine_of(name: str) -> Machine:
    """The device of a name; `auto` is a GPU where there is one. Raises KernelInputError where it is missing."""
    if name not in DEVICES:
        raise KernelInputError(f"unknown device {name!r:.60}; one of {', '.join(DEVICES)}")
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise KernelInputError(f"torch {torch.__version__} sees no GPU here; use --device cpu")
    device = torch.device("cuda", torch.cuda.current_device()) if there and name != "cpu" else torch.device("cpu")
    return Machine(device, _name(device), _provenance(device))


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else this_machine.processor()


def _provenance(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {"name": _name(device)}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {
            "memory_bytes": card.total_memory,
            "compute_capability": [card.major, card.minor],
            "multiprocessors": card.multi_processor_count,
            "cache_bytes": card.L2_cache_size,
        }
    else:
        found["threads"] = torch.get_num_threads()
    return {
        "date": this_machine.now(),
        "command": this_machine.command(),
        "git_commit": this_machine.git_commit(),
        "device": found,
        "driver": this_machine.driver() if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "libraries": this_machine.versions(LIBRARIES),
    }
