"""What is written down of a traced step: raw sizes of storages, births and deaths, and what every operator computes and moves."""

from dataclasses import dataclass

from tuneplan.profiling.counts import Counts

RECOMPUTE = "recompute"
STEP = ("forward", RECOMPUTE, "backward", "optimizer_step")
"""Phases of the operators of a step."""


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator of the last step.

    Attributes:
        phase: in which it ran; RECOMPUTE for what gradient checkpointing runs again in the backward.
        kind: "product", "attention", "dequantize" or "other".
        dtype: of a product's factors.
        flops: a multiply-add is 2.
        moved: bytes of the tensors that it reads and writes; of a dequantization, the weights that it gives.
    """

    phase: str
    kind: str
    dtype: str
    flops: int
    moved: int


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage without its size: when and where it was born, and for what."""

    phase: str
    op: str
    module: str
    category: int


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter of the model that ran.

    Attributes:
        name: its path.
        shape: of the weight that it stands for, where it is packed.
        storage: a dtype of the planner, or a format of bitsandbytes.
        trained: it got a gradient.
        idle: it is left to be trained, and got none.
        adapter: the method brought it.
    """

    name: str
    shape: tuple[int, ...]
    storage: str
    trained: bool
    idle: bool
    adapter: bool


@dataclass(frozen=True, slots=True)
class Recording:
    """A step at one batch and length.

    Attributes:
        storages: in the order of their births.
        sizes: of the storages [bytes], not rounded.
        log: the index of a storage at its birth, and -1 - index at its death.
        phases: names, with the index of `log` at which each starts.
        operators: of the last step.
        counts: of the model's parameters.
        notes: what was built otherwise than asked for.
        weights: parameters, tied ones once.
        layers: paths of the modules that FSDP takes for layers.
    """

    storages: tuple[Storage, ...]
    sizes: tuple[int, ...]
    log: tuple[int, ...]
    phases: tuple[tuple[str, int], ...]
    operators: tuple[Operator, ...]
    counts: Counts
    notes: tuple[str, ...]
    weights: tuple[Weight, ...] = ()
    layers: tuple[str, ...] = ()
