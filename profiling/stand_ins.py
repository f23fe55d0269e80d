"""What other devices lack or do otherwise, so that code written for CUDA runs on them as it does there."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn


@contextmanager
def autocast_regions() -> Iterator[None]:
    """`torch.autocast("meta", ...)` does nothing instead of raising: meta tensors have no autocast, `CudaAutocast` acts for it.

    PEFT's wrapper of parameters and some models turn autocast off in a region by the device of their tensors.
    """
    original: Any = torch.autocast

    class Region(original):  # type: ignore[misc]  # code may test for the class
        def __new__(cls, device_type: str, *args: Any, **kwargs: Any) -> Any:
            return nullcontext() if device_type == "meta" else original(device_type, *args, **kwargs)

    anything: Any = torch
    anything.autocast = Region
    try:
        yield
    finally:
        anything.autocast = original


@contextmanager
def cuda_dropout() -> Iterator[None]:
    """Dropout as CUDA runs it: one fused kernel that keeps a boolean mask, where other devices keep the noise."""
    original = nn.functional.dropout

    def fused(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        return torch.native_dropout(input, p, True)[0] if training and p else input

    nn.functional.dropout = fused
    try:
        yield
    finally:
        nn.functional.dropout = original
