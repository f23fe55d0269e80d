"""Indexing by a boolean mask on the meta device, which has no values to count: the number of places is told.

`hidden[mask]` and `hidden[mask] = rows` with the gradients of both (`index` and `index_put` of torch 2.13 derivatives.yaml).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

_INDEX = torch.ops.aten.index.Tensor
_PUT = torch.ops.aten.index_put.default
_COPY = torch.ops.aten._to_copy.default
_PUT_IN_PLACE = (torch.ops.aten.index_put_.default, torch.ops.aten._index_put_impl_.default)


def counts(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], places: int) -> torch.Tensor | None:
    """Whole numbers that code takes off the meta device to cut by them: the places, shared evenly. None for another operator."""
    device = kwargs.get("device")
    if func is not _COPY or not places or device is None or torch.device(device).type != "cpu" or not args[0].is_meta:
        return None
    if args[0].dtype is not torch.int64:
        return None
    return torch.full(args[0].shape, places // max(1, args[0].numel()), dtype=torch.int64)


def result(func: Callable[..., Any], args: tuple[Any, ...], places: int) -> torch.Tensor | None:
    """What an operator gives that takes places by a mask on meta, or None for any other operator.

    `places`: how many there are in the masks of the step.
    """
    if func is not _INDEX and func is not _PUT and func not in _PUT_IN_PLACE:
        return None
    tensor, indices = args[0], args[1]
    mask = indices[0] if indices else None
    if not places or not tensor.is_meta or mask is None or mask.dtype is not torch.bool:
        return None
    if func is _INDEX:
        taken: torch.Tensor = tensor.new_empty((places, *tensor.shape[mask.dim() :]))
        return taken
    return torch.empty_like(tensor) if func is _PUT else tensor
