"""How a real step can end early on a sound configuration: no memory left, or a device that is gone. Both are results."""

from dataclasses import dataclass
from typing import Any

import torch

OUT_OF_MEMORY = "out_of_memory"
DEVICE_LOST = "device_lost"
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
_NO_DEVICE = (
    "cuda error",
    "cuda driver error",
    "cublas_status",
    "cudnn_status",
    "nccl",
    "gloo",
    "connection closed",
    "no longer",
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a measurement ended early.

    Attributes:
        kind: OUT_OF_MEMORY or DEVICE_LOST.
        phase: what the program was doing.
        reason: the library's own words, in one line.
    """

    kind: str
    phase: str
    reason: str

    @property
    def line(self) -> str:
        """One line for a person."""
        what = "ran out of memory" if self.kind == OUT_OF_MEMORY else "the device stopped answering"
        return f"{what} in {self.phase.replace('_', ' ')}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"kind": self.kind, "phase": self.phase, "reason": self.reason}


def failure_of(error: BaseException | None, phase: str) -> Failure | None:
    """The failure that an error, or the error that it came from, stands for; None for any other error."""
    while error is not None:
        reason = " ".join(str(error).split())[:300]
        said = reason.lower()
        if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
            return Failure(OUT_OF_MEMORY, phase, reason or "no memory left")
        if isinstance(error, RuntimeError) and any(words in said for words in _NO_MEMORY):
            return Failure(OUT_OF_MEMORY, phase, reason)
        lost = getattr(torch, "AcceleratorError", ())
        if isinstance(error, lost) or (isinstance(error, RuntimeError) and any(words in said for words in _NO_DEVICE)):
            return Failure(DEVICE_LOST, phase, reason)
        error = error.__cause__
    return None
