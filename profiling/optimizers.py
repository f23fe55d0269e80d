"""The real optimizers behind the planner's names."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from tuneplan.planner.errors import InputError
from tuneplan.planner.training.optimizers import PAGED_MINIMUM


def make_optimizer(name: str, parameters: list[Any], master_weights: bool = False) -> Any:
    """The torch, transformers or bitsandbytes optimizer of a name.

    Args:
        name: as in the planner's registry.
        parameters: to be trained.
        master_weights: update fp32 copies of 16-bit parameters.

    Raises:
        InputError: bitsandbytes is needed and not installed.
    """
    if master_weights:
        return MasterWeights(name, parameters)
    from transformers.optimization import Adafactor

    makers: dict[str, Callable[[], Any]] = {
        "adamw": lambda: torch.optim.AdamW(parameters, foreach=True),
        "adamw_fused": lambda: torch.optim.AdamW(parameters, fused=True),
        "adamw_forloop": lambda: torch.optim.AdamW(parameters, foreach=False),
        "sgd": lambda: torch.optim.SGD(parameters, foreach=True),
        "sgd_momentum": lambda: torch.optim.SGD(parameters, foreach=True, momentum=0.9),
        "adafactor": lambda: Adafactor(parameters, lr=1e-3, scale_parameter=False, relative_step=False),
    }
    meta = parameters[0].device.type == "meta"
    if name == "adamw_fused" and meta:
        return _FusedOnMeta(parameters)
    if name in makers:
        return makers[name]()
    try:
        import bitsandbytes
    except ImportError as error:
        raise InputError(f"optimizer {name} needs bitsandbytes; pip install 'tuneplan[profile]'") from error
    optim = bitsandbytes.optim
    classes = {
        "adamw_8bit": optim.AdamW8bit,
        "paged_adamw_32bit": optim.PagedAdamW32bit,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
        "lion": optim.Lion,
    }
    if name.startswith("paged") and meta:
        return _paged_on_meta(optim.AdamW8bit(parameters) if name.endswith("8bit") else optim.AdamW(parameters))
    return classes[name](parameters)


class _FusedOnMeta:
    """What `torch.optim.AdamW(fused=True)`, which refuses meta tensors, allocates: two states and a step count a parameter."""

    def __init__(self, parameters: list[Any]) -> None:
        self._parameters = parameters
        self.state: dict[Any, dict[str, torch.Tensor]] = {}

    def step(self) -> None:
        """The first makes the states; the fused kernel needs no more."""
        for p in self._parameters:
            if p not in self.state and p.grad is not None:
                step = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        for p in self._parameters:
            p.grad = None


def _paged_on_meta(optimizer: Any) -> Any:
    """A bitsandbytes optimizer whose large states, which are paged to host memory, are not counted on the device.

    Mirrors `get_state_buffer` of bitsandbytes 0.50 optim/optimizer.py: states of fewer than 100,000 elements are not paged.
    """

    def buffer(parameter: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        if parameter.numel() < PAGED_MINIMUM:
            return torch.zeros_like(parameter, dtype=dtype)
        with _disable_current_modes():  # the tracker does not see it
            return torch.zeros_like(parameter, dtype=dtype)

    optimizer.get_state_buffer = buffer
    return optimizer


class MasterWeights:
    """An optimizer on fp32 copies of 16-bit weights: cast gradients, update, copy back (as DeepSpeed and Megatron do)."""

    def __init__(self, name: str, parameters: list[Any]) -> None:
        """Arguments: the inner optimizer's name, and the 16-bit parameters."""
        self._name = name
        self._parameters = parameters
        self._masters: list[Any] = []
        self._inner: Any = None

    @property
    def state(self) -> dict[Any, Any]:
        """The inner optimizer's, and the copies."""
        inner = dict(self._inner.state) if self._inner is not None else {}
        return {**inner, "masters": {str(i): master for i, master in enumerate(self._masters)}}

    def step(self) -> None:
        """One update; the first makes the copies."""
        if not self._masters:
            self._masters = [p.detach().float() for p in self._parameters]
            self._inner = make_optimizer(self._name, self._masters)
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            master.grad = parameter.grad.float()
        self._inner.step()
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            parameter.data.copy_(master)
            master.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the 16-bit gradients."""
        for parameter in self._parameters:
            parameter.grad = None
