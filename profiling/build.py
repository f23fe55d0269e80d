"""What a training script builds: model, PEFT's adapters, gradient checkpointing, optimizer; named as the planner names them."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tuneplan.planner.methods.method import Method


def causal_model(
    config: Mapping[str, Any], implementation: str, dtype: torch.dtype, device: str, use_cache: bool = False
) -> nn.Module:
    """The causal language model of a config.json with random weights on a device, in training mode.

    Args:
        config: contents of a config.json; `model_type` names the architecture.
        implementation: of attention, a name that transformers knows.
        dtype: of all parameters.
        device: "meta" for no weights at all.
        use_cache: keep keys and values, as a model does unless a trainer turns it off.
    """
    rest = {k: v for k, v in copy.deepcopy(dict(config)).items() if k not in ("architectures", "torch_dtype", "dtype")}
    settings = AutoConfig.for_model(rest.pop("model_type"), **rest)
    settings._attn_implementation = implementation
    settings.use_cache = use_cache
    with torch.device(device):
        model: nn.Module = AutoModelForCausalLM.from_config(settings, dtype=dtype)
    model.train()
    return model


def with_adapter(model: nn.Module, config: Mapping[str, Any], autocast_adapter_dtype: bool = True) -> nn.Module:
    """The model with an adapter of PEFT.

    Args:
        model: to be adapted in place.
        config: contents of an adapter_config.json; `peft_type` names the method.
        autocast_adapter_dtype: keep adapters of a 16-bit model in fp32, as PEFT does by default.
    """
    import peft

    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(config["peft_type"])]
    settings = kind(**{k: v for k, v in config.items() if k != "peft_type"})
    adapted: nn.Module = peft.get_peft_model(model, settings, autocast_adapter_dtype=autocast_adapter_dtype)
    return adapted


def with_method(model: nn.Module, method: Method) -> nn.Module:
    """The model with the adapters of the method's parts, as PEFT adds them; storage of the base weights is left as it is."""
    for part in method.parts:
        config = part.peft_config()
        if config is not None:
            model = with_adapter(model, config, getattr(part, "autocast_adapter_dtype", True))
    return model


def checkpoint_layers(model: Any, checkpointing: str) -> None:
    """Turn gradient checkpointing on: "off", "non-reentrant" or "reentrant"."""
    if checkpointing == "off":
        return
    options = {"use_reentrant": checkpointing == "reentrant"}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:  # its name before transformers 5.23
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def make_optimizer(name: str, parameters: list[Any]) -> Any:
    """The torch or transformers optimizer of a name. Raises KeyError for one that needs another library."""
    from transformers.optimization import Adafactor

    makers: dict[str, Callable[[], Any]] = {
        "adamw": lambda: torch.optim.AdamW(parameters, foreach=True),
        "adamw_fused": lambda: torch.optim.AdamW(parameters, fused=True),
        "adamw_forloop": lambda: torch.optim.AdamW(parameters, foreach=False),
        "sgd": lambda: torch.optim.SGD(parameters, foreach=True),
        "sgd_momentum": lambda: torch.optim.SGD(parameters, foreach=True, momentum=0.9),
        "adafactor": lambda: Adafactor(parameters, lr=1e-3, scale_parameter=False, relative_step=False),
    }
    return makers[name]()
