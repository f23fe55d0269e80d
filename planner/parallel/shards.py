"""A rank's part of each weight, and the units in which engines gather and reduce them.

A weight is split along its first dimension, padded so that all ranks hold as much (`FSDPParam._init_sharded_param`, torch 2.13
torch/distributed/fsdp/_fully_shard/_fsdp_param.py).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuneplan.planner.graph.tensor import BITS, elements, round_block
from tuneplan.planner.methods.formats import BLOCK_FORMATS, QUANTIZED, ROW_FORMATS
from tuneplan.planner.models.network import Network
from tuneplan.planner.models.parameter import Parameter
from tuneplan.planner.training.sharding import share

NO_RUN = -2
"""In place of the tail's runs where the units are accelerate's and there is no tail."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Weights that are gathered and reduced together; bytes of one unit on one rank.

    Attributes:
        whole_bytes: of its weights as the model computes with them, each in a storage of its own.
        gathered_bytes: of the one buffer into which all ranks' parts are gathered.
        part_bytes: of this rank's parts as they are kept.
        cast_bytes: of this rank's parts in the dtype of the computation, where they are kept in another.
        gradient_bytes: of the whole gradients.
        reduce_bytes: of the one buffer from which gradients are reduced.
        reduced_bytes: of this rank's part of them in the dtype of the reduction.
        kept_bytes: of this rank's part of the gradients as the optimizer reads them.
    """

    whole_bytes: int = 0
    gathered_bytes: int = 0
    part_bytes: int = 0
    cast_bytes: int = 0
    gradient_bytes: int = 0
    reduce_bytes: int = 0
    reduced_bytes: int = 0
    kept_bytes: int = 0

    @property
    def empty(self) -> bool:
        """Whether it has no weights (which for arrays of ranks is as plain as for one number of them)."""
        return isinstance(self.whole_bytes, int) and self.whole_bytes == 0


def padded(shape: Sequence[int], ranks: int) -> tuple[int, ...]:
    """Shape of a rank's part: the first dimension over the ranks, rounded up."""
    return (-(-shape[0] // ranks), *shape[1:]) if shape else ()


def weight_bytes(parameters: Iterable[Parameter]) -> int:
    """Bytes of all weights in the formats they are kept in."""
    return sum(p.stored_bytes * p.count for p in parameters)


def gradient_bytes(parameters: Iterable[Parameter]) -> int:
    """Bytes of the gradients of all trained weights."""
    return sum(p.stored_bytes * p.count for p in parameters if p.trainable)


def split(parameter: Parameter, ranks: int, wide: bool = False) -> Parameter:
    """A rank's part of a weight.

    What is no parameter of the model stays whole, and so do the scales of a quantized weight, which belong to the state of its
    module. `wide`: a trained 16-bit weight is kept in fp32.
    """
    if parameter.buffer:
        return parameter
    if parameter.storage in QUANTIZED:
        packed, beside = packed_bytes(parameter)
        stored = round_block(share(packed, ranks)) + beside
        return replace(parameter, shape=padded(parameter.shape, ranks), stored_bytes=stored)
    storage = "fp32" if wide and parameter.trainable else parameter.storage
    shape = padded(parameter.shape, ranks)
    state = padded(parameter.state_shape, ranks) if parameter.state_shape else ()
    stored = round_block(elements(shape) * BITS[storage] // 8)
    return replace(parameter, shape=shape, storage=storage, stored_bytes=stored, state_shape=state)


def flat_part(parameter: Parameter, ranks: int) -> int:
    """Bytes of a rank's part of a weight, in all layers that have it, where it is split by elements (DeepSpeed)."""
    if parameter.buffer:
        return parameter.stored_bytes * parameter.count
    if parameter.storage in QUANTIZED:
        packed, beside = packed_bytes(parameter)
        return (round_block(share(packed, ranks)) + beside) * parameter.count
    return round_block(share(elements(parameter.shape), ranks) * BITS[parameter.storage] // 8) * parameter.count


def packed_bytes(parameter: Parameter) -> tuple[int, int]:
    """Of one quantized weight: the bytes of its values, and those of its scales and tables as the allocator counts them."""
    name = parameter.storage
    bits = BLOCK_FORMATS[name].bits if name in BLOCK_FORMATS else ROW_FORMATS[name].bits
    packed = -(-elements(parameter.shape) * bits // 8)
    return packed, parameter.stored_bytes - round_block(packed)


def unit(parameters: Iterable[Parameter], ranks: int, wide: bool = False, reduce_dtype: str = "") -> Unit:
    """The weights of one unit, one of each.

    Args:
        parameters: what the unit has.
        ranks: over which it is split.
        wide: trained weights are kept in fp32 and cast to gather them.
        reduce_dtype: of the reduction of gradients; "" for their own.
    """
    whole = gathered = parts = cast = gradients = reduced = kept = 0
    plain = []
    for p in parameters:
        if p.buffer:
            continue
        if p.storage not in QUANTIZED:
            plain.append(p)
            continue
        part = share(packed_bytes(p)[0], ranks)
        whole += round_block(part * ranks)
        gathered += part * ranks
        parts += round_block(part)
    for count, size, trainable in _elements(plain, ranks):
        own = wide and trainable
        whole = whole + _all(round_block(count * ranks * size))
        gathered = gathered + _all(count) * ranks * size
        parts = parts + _all(round_block(count * (4 if own else size)))
        if own:
            cast = cast + _all(count) * size
        if trainable:
            reduced = reduced + _all(count) * (BITS[reduce_dtype] // 8 if reduce_dtype else size)
            kept = kept + _all(count) * (4 if wide else size)
    gradients = sum(p.stored_bytes for p in plain if p.trainable)
    return Unit(
        whole_bytes=whole,
        gathered_bytes=round_block(gathered),
        part_bytes=parts,
        cast_bytes=round_block(cast),
        gradient_bytes=gradients,
        reduce_bytes=round_block(reduced * ranks),
        reduced_bytes=round_block(reduced),
        kept_bytes=round_block(kept),
    )


def _elements(parameters: Sequence[Parameter], ranks: int) -> Iterator[tuple[int, int, bool]]:
    """Elements of a rank's part of weights, bytes of one, and whether they are trained; for arrays, of all alike at once."""
    numbers: Any = ranks
    if isinstance(numbers, int):
        for p in parameters:
            yield elements(padded(p.shape, ranks)), BITS[p.storage] // 8, p.trainable
        return
    import numpy as np

    groups: dict[tuple[int, bool], list[Parameter]] = {}
    for p in parameters:
        groups.setdefault((BITS[p.storage] // 8, p.trainable), []).append(p)
    for (size, trainable), members in groups.items():
        rows: Any = np.array([p.shape[0] if p.shape else 1 for p in members], np.int64)
        rest: Any = np.array([elements(p.shape[1:]) for p in members], np.int64)
        wide = (-1, *(1,) * np.ndim(numbers))
        yield -(-rows.reshape(wide) // ranks) * rest.reshape(wide), size, trainable


def _all(sizes: Any) -> int:
    """A number, or the sum over weights of arrays."""
    total: int = sizes if isinstance(sizes, int) else sizes.sum(0)
    return total


def from_host(own: Unit) -> Unit:
    """A unit whose parts live in host memory: they stand on the device while they are gathered, its gradients not at all.

    Mirrors `FSDPParam.all_gather_inputs` and the offload in `foreach_reduce`, torch 2.13, without the cast on the way.
    """
    return replace(own, cast_bytes=own.cast_bytes + own.part_bytes, kept_bytes=0)


def beside_bytes(parameters: Iterable[Parameter]) -> int:
    """Bytes of what is no parameter of the model, and stays on the device: buffers, and the scales of quantized weights."""
    return sum(
        (p.stored_bytes if p.buffer else packed_bytes(p)[1] if p.storage in QUANTIZED else 0) * p.count for p in parameters
    )


def layer_parameters(network: Network) -> list[list[Parameter]]:
    """The weights that each run's layers have to themselves; none for what is not a layer."""
    known = {p.name: p for p in network.parameters}
    return [[known[name] for name in run.block.parameters if "*" in name] for run in network.runs]


def root_parameters(network: Network) -> list[Parameter]:
    """The weights outside the layers: embeddings, last norm, head, and what a method shares between layers."""
    return [p for p in network.parameters if "*" not in p.name]


def accelerate_units(network: Network) -> tuple[list[list[Parameter]], list[Parameter], tuple[int, int]]:
    """The weights of each run's unit, those of the root, and the runs of the tail (see `fsdp.step`), as accelerate 1.15 has them.

    `fsdp2_prepare_model` (accelerate/utils/fsdp_utils.py) carves out the input embedding and a tail of last norm and head, which
    has the embedding too where they are tied. It looks for the norm among the children of the base model, and finds none under
    PEFT's wrapper: there the norm is the root's.
    """
    members, root = layer_parameters(network), root_parameters(network)
    end = len(network.runs) - 1
    used = set(network.runs[end].block.parameters)
    matrices = [p for p in root if len(p.shape) == 2]
    ahead = [(p, i) for i, run in enumerate(network.runs[:end]) for p in matrices if p.name in run.block.parameters]
    # the input embedding: what the head uses too, or else the largest
    embedding, start = max(ahead, key=lambda pair: (pair[0].name in used, pair[0].numel), default=(None, 0))
    last = [p for p in root if p.name in used]
    if any(p.adapter for p in network.parameters):
        last = [p for p in last if len(p.shape) > 1]
    if network.runs[end].block.exit is not None:  # a pipeline's stage without the head
        last = []
    tied = any(p is embedding for p in last)
    if last:
        members[end] = last
    if embedding is not None and not tied:
        members[start] = [embedding]
    taken = {p.name for p in last} | ({embedding.name} if embedding is not None else set())
    tail = (start if tied else end, end) if last else (NO_RUN, NO_RUN)
    return members, [p for p in root if p.name not in taken], tail
