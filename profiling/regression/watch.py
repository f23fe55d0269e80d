"""Any training code under the storage tracker: phases are told by hooks on backward and on optimizers.

What the code does needs no change: a backward begins and ends with `torch.autograd.backward`, an update with the hooks that
every `torch.optim.Optimizer` has, and a forward when the model is called.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._pytree import tree_iter

from tuneplan.planner.graph.tensor import GRADIENTS, OPTIMIZER_STATES, WEIGHTS
from tuneplan.profiling.regression.tracked import ProjectTracker
from tuneplan.profiling.stand_ins import cuda_dropout
from tuneplan.profiling.tracker import quantization_state

FORWARD, BACKWARD, UPDATE = "forward", "backward", "optimizer_step"


@contextmanager
def watch(
    root: Path, device_type: str, models: Iterable[nn.Module] = (), optimizers: Iterable[Any] = (), batch: Any = None
) -> Iterator[ProjectTracker]:
    """Track every storage on a device while the block runs.

    Args:
        root: of the user's project, to tell its lines from those of libraries.
        device_type: "meta", "cpu" or "cuda".
        models: whose weights count from the start, and whose modules are named.
        optimizers: whose states count from the start.
        batch: tensors that count from the start, in any nest of containers.
    """
    found = list(models)
    tracker = ProjectTracker(root, device_type, max((_vocabulary(model) for model in found), default=0))
    for model in found:
        tracker.name_modules(model)
        tracker.watch([*model.parameters(), *model.buffers()], category=WEIGHTS)
        tracker.watch(quantization_state(model), category=WEIGHTS)
        tracker.watch([p.grad for p in model.parameters() if p.grad is not None], op="gradient", category=GRADIENTS)
    for optimizer in optimizers:
        tracker.watch(_states(optimizer), op="optimizer state", category=OPTIMIZER_STATES)
    tracker.watch((leaf for leaf in tree_iter(batch) if isinstance(leaf, torch.Tensor)), "batch")
    tracker.phase = FORWARD
    with ExitStack() as stack:
        stack.enter_context(cuda_dropout())
        stack.enter_context(_phases(tracker, found))
        stack.enter_context(tracker)
        yield tracker


@contextmanager
def _phases(tracker: ProjectTracker, models: list[nn.Module]) -> Iterator[None]:
    """Set the tracker's phase as the program goes on."""
    original: Callable[..., Any] = torch.autograd.backward
    anything: Any = torch.autograd

    @wraps(original)
    def backward(*args: Any, **kwargs: Any) -> Any:
        outer = tracker.phase
        if outer != BACKWARD:
            tracker.phase = BACKWARD
        try:
            return original(*args, **kwargs)
        finally:
            if outer != BACKWARD:
                for model in models:
                    tracker.classify([p.grad for p in model.parameters()], GRADIENTS)
                tracker.phase = UPDATE  # clipping comes before the update; a forward says so itself

    def forward(*_: Any) -> None:
        if tracker.phase == UPDATE:
            tracker.phase = FORWARD

    def before(optimizer: Any, *_: Any) -> None:
        tracker.phase = UPDATE
        tracker.classify(_gradients(optimizer), GRADIENTS)

    def after(optimizer: Any, *_: Any) -> None:
        tracker.classify(_states(optimizer), OPTIMIZER_STATES)

    handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    handles += [model.register_forward_pre_hook(forward) for model in models]
    anything.backward = backward
    try:
        yield
    finally:
        anything.backward = original
        for handle in handles:
            handle.remove()


def _gradients(optimizer: Any) -> Iterator[torch.Tensor | None]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield parameter.grad


def _states(optimizer: Any) -> Iterator[torch.Tensor]:
    for leaf in tree_iter(list(getattr(optimizer, "state", {}).values())):
        if isinstance(leaf, torch.Tensor):
            yield leaf


def _vocabulary(model: Any) -> int:
    """Columns of the logits: `vocab_size` of the config, or 0."""
    size = getattr(getattr(model, "config", None), "vocab_size", 0)
    return size if isinstance(size, int) else 0
