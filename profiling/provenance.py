"""Where a measurement comes from: device, driver, versions, date, commit and command."""

import platform
from typing import Any

import torch

from tuneplan.hardware_profiles import this_machine

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "triton", "flash-attn", "liger-kernel")


def provenance(device: torch.device) -> dict[str, Any]:
    """Everything that is needed to repeat a measurement, or to know why it cannot be repeated.

    What is not known on this machine (a driver without NVML, a commit outside of a git checkout) is None.
    """
    return {
        "date": this_machine.now(),
        "command": this_machine.command(),
        "git_commit": this_machine.git_commit(),
        "device": _device(device),
        "driver": this_machine.driver() if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "libraries": this_machine.versions(LIBRARIES),
    }


def _device(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        return {
            "name": card.name,
            "memory_bytes": card.total_memory,
            "compute_capability": [card.major, card.minor],
            "multiprocessors": card.multi_processor_count,
        }
    return {"name": this_machine.processor(), "threads": torch.get_num_threads()}
