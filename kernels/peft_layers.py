"""PEFT's LoRA layers as LoRA linears: what a layer is at the moment of a call, or why its own code has to run.

Mirrors peft 0.21 (tuners/lora/layer.py `Linear.forward`, tuners/lora/bnb.py) and bitsandbytes 0.50 (nn/modules.py). A layer can
be merged, disabled, switched or offloaded at any time, so that everything is read anew for each call.
"""

import sys
from typing import Any

import torch
from torch import nn

from tuneplan.kernels.backend import autocast_of
from tuneplan.kernels.errors import KernelInputError
from tuneplan.kernels.frozen_weight import Rows8bit, Weight
from tuneplan.kernels.linear_4bit import MOST_TOKENS
from tuneplan.kernels.lora_linear import Adapted
from tuneplan.kernels.packed import FLOATS, Packed4bit

Reading = tuple[Adapted, torch.dtype | None]
"""A layer, and the dtype of the products with its quantized weight."""


def why_left_alone(layer: Any) -> str | None:
    """Why a LoRA layer of PEFT can never run as a LoRA linear, in a few words; None where it can."""
    if type(layer) not in _lora_types():
        return f"a layer of PEFT's type {type(layer).__name__}; Linear, Linear4bit and Linear8bitLt are supported"
    if "forward" in vars(layer):
        return "its forward was replaced by something else"
    if getattr(layer, "fan_in_fan_out", False):
        return "its weight is transposed (Conv1D)"
    base = layer.get_base_layer()
    if _form(base) is None:
        return f"its base layer is a {type(base).__name__}; Linear, Linear4bit and Linear8bitLt are supported"
    if not _plain(base):
        return "its base layer has hooks, or a forward that was replaced (offloading, partitioned weights)"
    names = list(layer.lora_A)
    special = [name for name in names if name in layer.lora_variant]
    if names and len(special) == len(names):
        return f"its adapter is a variant of LoRA ({type(layer.lora_variant[names[0]]).__name__})"
    if names and all(layer.lora_B[name].bias is not None for name in names):
        return "its adapter has a bias (lora_bias)"
    return None


def read(layer: Any, x: torch.Tensor) -> Reading | None:
    """The layer as it is now, for an input; None where PEFT's own code has to run.

    Never raises: what cannot be read is PEFT's.
    """
    if layer.disable_adapters or layer.merged or not layer.cast_input_dtype_enabled:
        return None
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1 or names[0] in layer.lora_variant:
        return None
    name = names[0]
    A, B, dropout, base = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name], layer.base_layer
    linear = {type(A), type(B)} == {nn.Linear} and B.bias is None and A.weight.dtype == B.weight.dtype in FLOATS
    if not linear or type(dropout) not in (nn.Identity, nn.Dropout) or not all(map(_plain, (A, B, dropout, base))):
        return None
    if not _takes(x) or any(type(weight) is not nn.Parameter for weight in (A.weight, B.weight)):
        return None
    weight, compute = _weight(base, x, layer.training)
    if weight is None:
        return None
    share = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
    return Adapted(weight, A.weight, B.weight, layer.scaling[name], base.bias, share), compute


def _takes(x: Any) -> bool:
    """Whether an input's dtype gives the dtypes that PEFT's layers give."""
    if type(x) not in (torch.Tensor, nn.Parameter) or x.dtype not in FLOATS:
        return False
    kind = autocast_of(x.device)
    # two 16-bit types meet in fp32, PEFT's layers in one of them
    return x.dtype == torch.float32 or not torch.is_autocast_enabled(kind) or x.dtype == torch.get_autocast_dtype(kind)


def _weight(base: Any, x: torch.Tensor, training: bool) -> tuple[Weight | None, torch.dtype | None]:
    """A base layer's frozen weight and the dtype of its products; no weight where PEFT's own code is right, or better."""
    form = _form(base)
    if form == "dense":
        weight = base.weight
        fits = weight.dtype == x.dtype or (torch.is_autocast_enabled(autocast_of(x.device)) and weight.dtype in FLOATS)
        return (weight if type(weight) is nn.Parameter and not weight.requires_grad and fits else None), None
    # few tokens: bitsandbytes decodes inside of the product
    inference = not training and not torch.is_grad_enabled()
    if inference and (form == "8bit" or x.numel() <= MOST_TOKENS * x.shape[-1]):
        return None, None
    try:
        if form == "4bit":
            state = getattr(base.weight, "quant_state", None)
            # inference on a CPU leaves the weight packed in another way
            if state is None or getattr(state, "packing_format_for_cpu", False):
                return None, None
            # bitsandbytes takes the dtype of the first input where none is set
            return Packed4bit.of(base.weight.data, state), base.compute_dtype if base.compute_type_is_set else x.dtype
        state = base.state
        data = base.weight.CB if base.weight.CB is not None else state.CB
        scale = base.weight.SCB if base.weight.SCB is not None else state.SCB
        if state.has_fp16_weights or data is None or scale is None:
            return None, None
        # bitsandbytes rounds inputs to eight bits on a GPU; bf16 keeps more, and products of fp32 would be slow
        narrow = torch.bfloat16 if x.device.type == "cuda" and x.dtype == torch.float32 else None
        return Rows8bit(data, scale), narrow
    except KernelInputError:
        return None, None


def _form(base: Any) -> str | None:
    """How a base layer stores its weight, if it is of a known type."""
    if type(base) is nn.Linear:
        return "dense"
    if "bitsandbytes" not in sys.modules:
        return None
    import bitsandbytes

    if isinstance(base, bitsandbytes.nn.Linear4bit):
        return "4bit"
    return "8bit" if type(base) is bitsandbytes.nn.Linear8bitLt else None


def _plain(module: nn.Module) -> bool:
    """Whether calling a module does nothing but run its class's forward."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return not hooks and "forward" not in vars(module)


def _lora_types() -> tuple[type, ...]:
    from peft.tuners import lora

    # the quantized ones exist where bitsandbytes does
    names = ("Linear", "Linear4bit", "Linear8bitLt")
    return tuple(getattr(lora, name) for name in names if hasattr(lora, name))
