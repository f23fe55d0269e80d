"""What the meta device lacks, so that code written for CUDA runs on it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch


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
