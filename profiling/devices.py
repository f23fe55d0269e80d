"""The device that a measurement runs on, and what it can run."""

import torch
from transformers.utils import is_flash_attn_2_available

from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.profiling.ranks import Ranks
from tuneplan.profiling.subject import Subject, sft_alone

DEVICES = ("auto", "cuda", "cpu")
_ATTENTION = {"eager": "eager", "sdpa": "sdpa", "flash": "flash_attention_2"}


def choose(name: str, ranks: Ranks) -> torch.device:
    """The device of a name; `auto` is a GPU where there is one. Raises InputError where it is missing."""
    if name not in DEVICES:
        raise UnknownNameError("device", name, DEVICES, "plan profile --help")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not found):
        return torch.device("cpu")
    if not found:
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        raise InputError(f"--device cuda: torch {torch.__version__} {built} and sees no GPU; use --device cpu, or plan trace")
    if ranks.local_rank >= found:
        raise InputError(f"process {ranks.local_rank} of this machine has no GPU, {found} are there; start fewer processes")
    device = torch.device("cuda", ranks.local_rank)
    torch.cuda.set_device(device)
    return device


def attention_of(subject: Subject, device: torch.device) -> str:
    """The real attention that was asked for, by transformers' name. Raises InputError where it is not installed."""
    asked = subject.settings.attention
    if asked != "flash":
        return _ATTENTION[asked]
    if device.type != "cuda":
        raise InputError("--attention flash runs on a GPU only; use eager or sdpa, or plan trace")
    if not is_flash_attn_2_available():
        raise InputError("--attention flash needs the package flash-attn, which is not installed; use sdpa, or install it")
    return _ATTENTION[asked]


def check(subject: Subject, device: torch.device) -> None:
    """Raise InputError for a dtype, an optimizer or a loss that this device or this installation cannot run."""
    sft_alone(subject, "plan profile")
    if device.type == "cpu" and subject.optimizer.name.startswith("paged"):
        raise InputError(f"--optimizer {subject.optimizer.name} pages between a GPU and its host; use another, or a GPU")
    if subject.settings.loss == "liger":
        if device.type == "cpu":
            raise InputError("--loss liger runs Triton kernels, on a GPU only; use eager or chunked, or plan trace")
        try:
            import liger_kernel  # noqa: F401
        except ImportError as error:
            raise InputError("--loss liger needs the package liger-kernel; pip install liger-kernel") from error
    if subject.settings.loss == "trl":
        raise InputError("--loss trl is TRL's own, which its trainers alone run; use plan trace, or plan export and run that")
