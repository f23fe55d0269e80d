"""Bytes that clipping and the update of the weights stream, and the time they take.

Counted per weight: how often each kind of tensor is read or written by the kernels of the named implementation.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tuneplan.planner.graph.tensor import BITS, elements
from tuneplan.planner.models.parameter import Parameter
from tuneplan.planner.training.optimizers import Optimizer, state_bytes


@dataclass(frozen=True, slots=True)
class Traffic:
    """Reads and writes of each element in one update.

    Attributes:
        weight: of the weight.
        gradient: of the gradient.
        state: of all states together, in units of one state tensor.
        temporary: of temporaries as large as the weight.
        launches: kernels for each tensor; 0 for a fused or multi-tensor update.
    """

    weight: int
    gradient: int
    state: int
    temporary: int = 0
    launches: int = 0


# Adam, decoupled decay, in eight passes: decay, lerp, mul, addcmul, sqrt, div, add, addcdiv (torch 2.13 optim/adam.py).
_ADAM = Traffic(weight=4, gradient=2, state=8, temporary=6)
TRAFFIC = {
    "adamw": _ADAM,
    "adamw_forloop": Traffic(weight=4, gradient=2, state=8, temporary=6, launches=8),
    "sgd": Traffic(weight=2, gradient=1, state=0),
    "sgd_momentum": Traffic(weight=2, gradient=1, state=5),
    # transformers Adafactor.step: square, two means, two rsqrt, outer product, update, clip, step, all in fp32.
    "adafactor": Traffic(weight=3, gradient=2, state=0, temporary=18, launches=20),
}
"""Optimizers that stream their tensors more than once; every other is one fused pass."""

_CLIP_READS = 3
"""`clip_grad_norm_` reads gradients for the norm, then reads and writes them to scale, whether it clips or not."""


@dataclass(frozen=True, slots=True)
class UpdateBytes:
    """One update: bytes moved in device memory, bytes of paged state that cross PCIe one way, kernels started."""

    moved: int
    paged: int
    launches: int


def update_bytes(optimizer: Optimizer, parameters: Iterable[Parameter], master: bool, clip: bool, shards: int = 1) -> UpdateBytes:
    """Traffic of clipping and one update of all trained weights.

    Args:
        optimizer: of the registry.
        parameters: of the network; only trained ones count.
        master: fp32 master weights: gradients are widened, weights narrowed after the update.
        clip: gradients are clipped by their norm.
        shards: ranks over which ZeRO divides the update.
    """
    trained = [p for p in parameters if p.trainable]
    fused = Traffic(weight=2, gradient=1, state=2 * optimizer.states)
    traffic = TRAFFIC.get(optimizer.name, fused)
    moved, launches = 0, 0
    for p in trained:
        count = elements(p.shape) * p.count
        own = BITS[p.storage] // 8
        work = 4 if master else own
        state = BITS[optimizer.state_dtype] // 8 if optimizer.state_dtype else work
        temporary = 4 if optimizer.name == "adafactor" else work
        moved += count * (traffic.weight * work + traffic.gradient * work + traffic.state * state)
        moved += count * traffic.temporary * temporary
        moved += count * _CLIP_READS * own if clip else 0
        moved += count * 2 * (own + 4) if master and own < 4 else 0
        launches += traffic.launches * p.count
    paged = state_bytes(optimizer, trained, master).host
    return UpdateBytes(-(-moved // shards), -(-paged // shards), -(-launches // shards))
