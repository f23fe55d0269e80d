"""Parameters of a model that ran, as the planner names them, and the paths of its layers."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from tuneplan.profiling.build import Built
from tuneplan.profiling.fallback.recording import Weight

_STORAGES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.bool: "bool",
}


def weights(built: Built, received: Sequence[bool]) -> Iterator[Weight]:
    """Every parameter, in the order of the model. `received`: whether it got a gradient."""
    for (name, parameter), got in zip(built.model.named_parameters(), received, strict=True):
        state = getattr(parameter, "quant_state", None)
        shape = tuple(parameter.shape if state is None else state.shape)
        idle = parameter.requires_grad and not got
        yield Weight(name, shape, _storage(parameter, state), got, idle, id(parameter) not in built.base)


def _storage(parameter: nn.Parameter, state: Any) -> str:
    """A dtype or a format, by its name in the planner; a byte for what it has no name for."""
    if state is not None:
        return f"{state.quant_type}{'-double' if state.nested else ''}"
    if type(parameter).__name__ == "Int8Params":
        return "int8"
    return _STORAGES.get(parameter.dtype, "uint8")


def layers(model: nn.Module) -> Iterator[str]:
    """Paths of the outermost modules that transformers names as not to be split, as accelerate's auto-wrap policy takes them.

    Where a model names none, of those that it would checkpoint.
    """
    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    found = ""
    for path, module in model.named_modules():
        own = type(module).__name__ in names if names else isinstance(module, GradientCheckpointingLayer)
        if own and path.rpartition(".")[2].isdigit() and not (found and path.startswith(f"{found}.")):
            found = path
            yield path
