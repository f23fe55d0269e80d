"""The real optimizers behind the planner's names."""

from collections.abc import Callable
from typing import Any

import torch

from tuneplan.planner.errors import InputError


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
    return classes[name](parameters)


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
