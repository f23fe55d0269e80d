"""Unsloth's public functions, called as an installed package; importing it changes other libraries, so it comes last."""

from types import SimpleNamespace
from typing import Any


def function(name: str) -> Any:
    """A function of `unsloth.kernels`. Raises ImportError where this version has none of that name."""
    from importlib import import_module

    found = getattr(import_module("unsloth.kernels"), name, None)
    if found is None:
        raise ImportError(f"this version of unsloth has no unsloth.kernels.{name}")
    return found


def adapted_linear(layer: Any) -> Any:
    """A PEFT LoRA layer as Unsloth runs an output projection; activations are [1, tokens, features]."""
    run = function("apply_lora_o")
    holder = SimpleNamespace(o_proj=layer)
    return lambda x: run(holder, x)
