"""Optimizers: what they keep for each trained parameter, where, and what a step needs for a moment.

Sizes are of the update as the named library runs it; see each entry's `source`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tuneplan.planner.errors import UnknownNameError
from tuneplan.planner.graph.tensor import BITS, Size, elements, round_block
from tuneplan.planner.models.parameter import Parameter

SMALL_8BIT = 4096
PAGED_MINIMUM = 100_000
STATE_BLOCK = 256


@dataclass(frozen=True, slots=True)
class Optimizer:
    """An optimizer of the registry.

    Attributes:
        name: as given on the command line.
        states: tensors as large as the parameter.
        state_dtype: their dtype; "" is the parameter's own.
        scratch: how a step needs memory: "none", "foreach" (a copy of all parameters of a dtype), "loop" (two copies of one
            parameter) or "adafactor".
        paged: states live in host memory and move on demand.
        factored: the second moment of a matrix is a row and a column.
        source: whose behaviour it mirrors.
    """

    name: str
    states: int
    state_dtype: str
    scratch: str
    source: str
    paged: bool = False
    factored: bool = False


_TORCH = "torch 2.13 torch/optim/adam.py"
_BNB = "bitsandbytes 0.50 optim/optimizer.py"

OPTIMIZERS = {
    o.name: o
    for o in (
        Optimizer("adamw", 2, "", "foreach", f"{_TORCH} _multi_tensor_adam (foreach, the default)"),
        Optimizer("adamw_fused", 2, "", "none", f"{_TORCH} _fused_adam"),
        Optimizer("adamw_forloop", 2, "", "loop", f"{_TORCH} _single_tensor_adam (foreach=False)"),
        Optimizer("adamw_8bit", 2, "uint8", "none", f"{_BNB} AdamW8bit, blocks of {STATE_BLOCK}"),
        Optimizer("paged_adamw_32bit", 2, "fp32", "none", f"{_BNB} PagedAdamW32bit", paged=True),
        Optimizer("paged_adamw_8bit", 2, "uint8", "none", f"{_BNB} PagedAdamW8bit, blocks of {STATE_BLOCK}", paged=True),
        Optimizer("sgd", 0, "", "none", "torch 2.13 torch/optim/sgd.py _multi_tensor_sgd, no weight decay"),
        Optimizer("sgd_momentum", 1, "", "none", "torch 2.13 torch/optim/sgd.py _multi_tensor_sgd"),
        Optimizer("adafactor", 1, "fp32", "adafactor", "transformers 5.23 optimization.py Adafactor.step", factored=True),
        Optimizer("lion", 1, "fp32", "none", f"{_BNB} Lion, 32 bits"),
    )
}

ALIASES = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw_fused",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "lion_32bit": "lion",
}


def find(name: str) -> Optimizer:
    """The optimizer of a name or alias. Raises UnknownNameError."""
    key = name.strip().lower()
    key = ALIASES.get(key, key)
    if key not in OPTIMIZERS:
        raise UnknownNameError("optimizer", name, [*OPTIMIZERS, *ALIASES], "plan estimate --help")
    return OPTIMIZERS[key]


@dataclass(frozen=True, slots=True)
class StateBytes:
    """Bytes of optimizer state: on the device, and in host memory for paged optimizers."""

    device: Size
    host: Size


@dataclass(frozen=True, slots=True)
class Optimizers:
    """Several at once: their bytes are arrays (optimizer, 1 or numbers of ranks, 1), so that one walk serves all of them."""

    every: tuple[Optimizer, ...]
    name: str = "optimizer"


AnyOptimizer: TypeAlias = Optimizer | Optimizers


def state_bytes(optimizer: AnyOptimizer, parameters: Iterable[Parameter], master: bool) -> StateBytes:
    """Optimizer state of all trained parameters.

    `master`: the optimizer keeps a fp32 copy of every 16-bit parameter and its own states in fp32.
    """
    if isinstance(optimizer, Optimizers):
        trained = [p for p in parameters if p.trainable]
        tables = _tables(trained)
        found = [
            state_bytes(one, trained, master) if one.factored else _of_tables(one, tables, trained, master)
            for one in optimizer.every
        ]
        return StateBytes(_column([one.device for one in found]), _column([one.host for one in found]))
    device = host = 0
    for p in parameters:
        if not p.trainable:
            continue
        on_device, on_host = _one(optimizer, p.state_shape or p.shape, p.storage, master)
        device += (on_device + _beside(p, master)) * p.count
        host += on_host * p.count
    return StateBytes(device, host)


def _beside(parameter: Parameter, master: bool) -> int:
    """Bytes of the one more tensor that some parameters' states have."""
    if not parameter.state_beside:
        return 0
    return round_block(elements(parameter.state_beside) * BITS["fp32" if master else parameter.storage] // 8)


def _tables(trained: Sequence[Parameter]) -> dict[str, tuple[Any, Any]]:
    """Elements of the states of all parameters of a dtype, one beside the other, and how many layers have each of them.

    Shapes: (parameter, 1 or numbers of ranks, 1).
    """
    import numpy as np

    groups: dict[str, list[Parameter]] = {}
    for p in trained:
        groups.setdefault(p.storage, []).append(p)
    tables = {}
    for dtype, members in groups.items():
        sizes: Any = [elements(p.state_shape or p.shape) for p in members]
        whole: Any = np.stack(np.broadcast_arrays(*sizes))
        whole = whole if whole.ndim > 1 else whole[:, None, None]
        counts = np.array([p.count for p in members], np.int64).reshape(-1, *(1,) * (whole.ndim - 1))
        tables[dtype] = whole, counts
    return tables


def _of_tables(
    optimizer: Optimizer, tables: dict[str, tuple[Any, Any]], trained: Sequence[Parameter], master: bool
) -> StateBytes:
    """`state_bytes` of one optimizer whose states are as large as the parameters, of all parameters at once."""
    device = host = 0
    for dtype, (sizes, counts) in tables.items():
        on_device, on_host = _one(optimizer, (sizes,), dtype, master)
        device = device + (on_device * counts).sum(0)
        host = host + (on_host * counts).sum(0)
    return StateBytes(device + sum(_beside(p, master) * p.count for p in trained), host)


def _one(optimizer: Optimizer, shape: tuple[int, ...], dtype: str, master: bool) -> tuple[int, int]:
    count = elements(shape)
    copy = round_block(4 * count) if master and dtype != "fp32" else 0
    if optimizer.factored and len(shape) > 1:
        rows = elements(shape[:-1])
        columns = count // shape[-2]
        return copy + round_block(4 * rows) + round_block(4 * columns) + round_block(4), 0
    kept = "fp32" if master and not optimizer.state_dtype else optimizer.state_dtype or dtype
    state = optimizer.states * round_block(count * BITS[kept] // 8)
    if kept == "uint8":
        scales = optimizer.states * round_block(4 * -(-count // STATE_BLOCK))
        small = count < SMALL_8BIT
        state = small * optimizer.states * round_block(4 * count) + (1 - small) * state
        copy = copy + (1 - small) * scales
    if not optimizer.paged:
        return copy + state, 0
    paged = count >= PAGED_MINIMUM
    return copy + (1 - paged) * state, paged * (optimizer.states * count * BITS[kept] // 8)


def _column(sizes: list[Size]) -> Size:
    import numpy as np

    every: Any = np.stack(np.broadcast_arrays(*[np.asarray(size, np.int64) for size in sizes]))
    sized: Size = every if every.ndim > 1 else every[:, None, None]
    return sized


def _largest(sizes: Sequence[Size]) -> Size:
    """The largest, element by element for arrays."""
    if all(isinstance(size, int) for size in sizes):
        return max(sizes)
    import numpy as np

    result: Any = np.max(np.broadcast_arrays(*sizes), 0)
    largest: Size = result
    return largest


def step_scratch(optimizer: AnyOptimizer, parameters: Sequence[Parameter], master: bool) -> Size:
    """Bytes that an update holds for a moment, on top of weights, gradients and states."""
    if isinstance(optimizer, Optimizers):
        return _column([step_scratch(one, parameters, master) for one in optimizer.every])
    trained = [p for p in parameters if p.trainable]
    if not trained:
        return 0
    gradients = sum(round_block(4 * elements(p.shape)) * p.count for p in trained if p.storage != "fp32") if master else 0
    projected = any(p.state_beside for p in trained)  # such an optimizer goes weight by weight
    if optimizer.scratch == "foreach" and not projected:
        return gradients + _foreach(trained, master)
    if optimizer.scratch == "loop" or projected:
        return gradients + _pairs(trained, 2, 1, master)
    if optimizer.scratch == "adafactor":
        return gradients + _adafactor(trained, master)
    return gradients


def _pairs(trained: Sequence[Parameter], own: int, before: int, master: bool) -> int:
    """Copies of a parameter and of the one before it, whose variables the loop has not overwritten yet; the largest such sum."""
    sizes = [round_block(elements(p.shape) * (4 if master else BITS[p.storage] // 8)) for p in trained]
    return _largest([own * size + before * previous for previous, size in zip(sizes[-1:] + sizes[:-1], sizes, strict=True)])


def _foreach(trained: Sequence[Parameter], master: bool) -> int:
    """The square root of all second moments of one dtype at once; the last group's copy is still referenced by the next."""
    groups: dict[str, int] = {}
    for p in trained:
        dtype = "fp32" if master else p.storage
        groups[dtype] = groups.get(dtype, 0) + round_block(elements(p.shape) * BITS[dtype] // 8) * p.count
    return sum(groups.values())


def _adafactor(trained: Sequence[Parameter], master: bool) -> int:
    """fp32 copies of a gradient and a parameter (if they are 16-bit), the squared gradient twice, and the update before it."""
    sizes = [(round_block(4 * elements(p.shape)), 2 if master or p.storage == "fp32" else 4) for p in trained]
    shifted = sizes[-1:] + sizes[:-1]
    return _largest([copies * wide + previous for (previous, _), (wide, copies) in zip(shifted, sizes, strict=True)])
