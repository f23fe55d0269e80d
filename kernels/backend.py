"""Which code runs an op: Triton's on a GPU, plain torch anywhere."""

import os
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import torch

from tuneplan.kernels.errors import KernelInputError, KernelUnavailableError

Backend = Literal["auto", "triton", "torch"]
BACKENDS = ("auto", "triton", "torch")
FIRST_CAPABILITY = (7, 5)
"""Compute capability from which Triton compiles for a card."""
FIRST_TRITON = (3, 6)
"""Whose `tl.gather` takes a table that threads share; the programs were compiled with 3.6 and 3.9."""


def _without_triton() -> str | None:
    """Why there is no Triton that compiles the programs, or None."""
    try:
        found = version("triton")
    except PackageNotFoundError:
        return "triton is not installed (pip install 'tuneplan[kernels]')"
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    return None if numbers >= FIRST_TRITON else f"triton {found} is older than {'.'.join(map(str, FIRST_TRITON))}"


_WITHOUT_TRITON = _without_triton()
"""Looked up once: an op asks at each call, and torch.compile cannot trace the question."""


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on tensors of the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def chosen(backend: str, device: torch.device) -> Literal["triton", "torch"]:
    """The code that runs for tensors on a device.

    Args:
        backend: "auto" takes Triton on a GPU that it supports and torch elsewhere; the others are taken at their word.
        device: where the tensors lie.

    Raises:
        KernelInputError: for a backend of another name.
        KernelUnavailableError: where Triton was asked for and cannot run.
    """
    if backend not in BACKENDS:
        raise KernelInputError(f"unknown backend {backend!r}: one of {', '.join(BACKENDS)}")
    if backend == "torch" or (backend == "auto" and device.type != "cuda"):
        return "torch"
    missing = why_not(device)
    if backend == "auto":
        return "torch" if missing else "triton"
    if missing:
        raise KernelUnavailableError(f"backend 'triton' cannot run here: {missing}; backend='torch' does")
    return "triton"


def why_not(device: torch.device) -> str | None:
    """Why Triton cannot run on a device, or None where it can."""
    if _WITHOUT_TRITON is not None:
        return _WITHOUT_TRITON
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return None if capability >= FIRST_CAPABILITY else f"compute capability {capability} is older than {FIRST_CAPABILITY}"
    if device.type == "cpu" and interpreted():
        return None
    return f"the tensors lie on {device.type}; a GPU is needed, or TRITON_INTERPRET=1 for tensors of the CPU"


def autocast_of(device: torch.device) -> str:
    """The device type whose autocast an op of these tensors is under: a traced tensor stands for one of a GPU."""
    return "cuda" if device.type == "meta" else device.type


def calls_directly() -> bool:
    """Whether an op may skip torch's dispatcher: nobody traces, compiles or intercepts it.

    The dispatcher costs more than a small kernel takes, so that eager calls go straight to the launch.
    """
    return not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() == 0
