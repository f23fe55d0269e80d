"""transformers' loop over experts (`experts_implementation="eager"`) on tensors without values.

The loop asks which experts have tokens, and which tokens each of them has. Without values nobody knows, so the routing that was
asked for answers: even, or worst, where all tokens choose the same experts. All else is the real code.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tuneplan.planner.models.expert_rows import hit, rows_of_experts


def is_experts(module: nn.Module) -> bool:
    """Whether transformers chooses an implementation for the module (`use_experts_implementation` of integrations/moe.py)."""
    return hasattr(module, "has_gate") and hasattr(module, "is_transposed")


def answer_routing(model: nn.Module, routing: str) -> None:
    """Make every loop over experts of a model on the meta device take the routing's answers."""
    for module in model.modules():
        if is_experts(module):
            module.forward = partial(_run, module.forward, int(getattr(module, "num_experts", 0)), routing)


def _run(forward: Callable[..., Any], experts: int, routing: str, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    indices: torch.Tensor = (
        args[0] if args else next(kwargs[name] for name in ("top_k_index", "router_indices") if name in kwargs)
    )
    tokens, top_k = indices.shape
    with _Answers(rows_of_experts(tokens, top_k, experts, routing)):
        return forward(hidden, *args, **kwargs)


class _Answers(TorchFunctionMode):
    """Answers the two questions of one run of the loop as CUDA's kernels would, in what they allocate."""

    def __init__(self, rows: list[int]) -> None:
        """`rows`: of each expert."""
        super().__init__()
        self._hit = [index for index, count in enumerate(rows) if count]
        self._left = hit(rows)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "one_hot":  # on the meta device it is written out for compilers, with a tensor more
            classes = int(given.get("num_classes", args[-1]))
            return torch.zeros((*args[0].shape, classes), dtype=torch.int64, device=args[0].device)
        if name == "nonzero":
            return torch.tensor(self._hit)[:, None]
        if name == "where" and len(args) == 1:
            condition = args[0].contiguous()
            places = torch.empty((self._left.pop(0), condition.dim()), dtype=torch.int64, device=condition.device)
            del condition
            return places.unbind(1)
        return func(*args, **given)
