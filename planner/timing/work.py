"""What a network has to do in one micro-batch, ready for any card: matrix products one by one, all other bytes summed.

An op without a matrix product costs its bytes, so such ops add up before the card is known; only products need the
larger of two times each.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneplan.planner.graph.block import Block
from tuneplan.planner.graph.block import recomputed as stop_of
from tuneplan.planner.graph.tape import Dims, Op
from tuneplan.planner.graph.tensor import Size, Tensor
from tuneplan.planner.models.network import Network, Run
from tuneplan.planner.training.settings import Settings

DEQUANTIZE_MOVED = 2.766
"""Bytes a weight read and written by the three kernels of bitsandbytes that dequantize NF4 with double quantization."""

DEQUANTIZE_LAUNCHES = 3

SMALL_OPS = (16 * 2**20, 32 * 2**20, 48 * 2**20)
"""Bytes that an op moves; which of them a card's cache holds is for the roofline to say."""


@dataclass(frozen=True, slots=True)
class Product:
    """`count` equal matrix products.

    Attributes:
        flops: of one; a multiply-add is 2.
        moved: bytes that one reads and writes.
        dtype: of its factors.
        attention: whether it is a fused attention kernel.
        count: how many.
        dims: rows, columns and summed dimension; None where they are not known, or of several products.
    """

    flops: Size
    moved: Size
    dtype: str
    attention: bool
    count: int
    dims: Dims | None = None

    def times(self, count: int) -> "Product":
        """So many of it."""
        return Product(self.flops, self.moved, self.dtype, self.attention, count, self.dims)


@dataclass(slots=True)
class Work:
    """A stretch of the step.

    Attributes:
        products: matrix products.
        moved: bytes that all other ops read and write.
        streams: of each of these ops its bytes, and how often it runs.
        dequantized: bytes read and written to dequantize 4-bit weights, by bitsandbytes' kernels.
        dequantizations: weights that are dequantized.
        launches: kernels started, bitsandbytes' for dequantization among them.
    """

    products: list[Product] = field(default_factory=list)
    moved: Size = 0
    streams: list[tuple[Size, int]] = field(default_factory=list)
    dequantized: Size = 0
    dequantizations: int = 0
    launches: int = 0

    @property
    def flops(self) -> Size:
        """Matrix-multiply FLOPs."""
        total: Size = 0
        for p in self.products:
            total = total + p.flops * p.count
        return total

    @property
    def total_moved(self) -> Size:
        """Bytes read and written by everything."""
        total: Size = self.moved + self.dequantized
        for p in self.products:
            total = total + p.moved * p.count
        return total

    def stream(self, moved: Size, count: int) -> None:
        """An op that only moves bytes, `count` times."""
        self.moved = self.moved + moved * count
        self.streams.append((moved, count))

    def small(self, most: int) -> Any:
        """Bytes of the ops that only move bytes, and no more than `most`."""
        arrays = [moved for moved, _ in self.streams if not isinstance(moved, int)]
        total: Size = sum(moved * count for moved, count in self.streams if isinstance(moved, int) and moved <= most)
        if not arrays:
            return total
        import numpy as np

        moved = np.stack(np.broadcast_arrays(*arrays))
        counts = np.array([count for moved, count in self.streams if not isinstance(moved, int)])
        found: Any = np.tensordot(counts, np.where(moved <= most, moved, 0), axes=1)
        return found + total


def together(works: Sequence[Work]) -> Work:
    """Several stretches as one: what is equal in them is one entry."""
    counts: dict[Hashable, int] = {}
    products: dict[Hashable, Product] = {}
    streams: dict[Hashable, Size] = {}
    whole = Work()
    for work in works:
        whole.moved, whole.dequantized = whole.moved + work.moved, whole.dequantized + work.dequantized
        whole.dequantizations += work.dequantizations
        whole.launches += work.launches
        for p in work.products:
            of = (_key(p.flops), _key(p.moved), p.dtype, p.attention, p.dims and tuple([_key(size) for size in p.dims]))
            products.setdefault(of, p)
            counts[of] = counts.get(of, 0) + p.count
        for moved, count in work.streams:
            key = _key(moved)
            streams.setdefault(key, moved)
            counts[key] = counts.get(key, 0) + count
    whole.products = [p.times(counts[of]) for of, p in products.items()]
    whole.streams = [(moved, counts[key]) for key, moved in streams.items()]
    return whole


class _Tally:
    """Work that is being added up: products and ops that are equal are one entry, with how often they run."""

    def __init__(self) -> None:
        self._products: dict[Hashable, Product] = {}
        self._counts: dict[Hashable, int] = {}
        self._streams: dict[Hashable, Size] = {}
        self._work = Work()

    def add(
        self, op: Op, flops: Size, moved: Size, launches: int, count: int, decoded: Size = 0, dims: Dims | None = None
    ) -> None:
        """An op, or one gradient of its backward, `count` times, for which `decoded` 4-bit weights are made dense."""
        work = self._work
        work.launches += launches * count
        if isinstance(flops, int) and flops == 0:
            key = _key(moved)
            self._streams.setdefault(key, moved)
            self._counts[key] = self._counts.get(key, 0) + count
            return
        assert op.output is not None
        dtype = op.computes or op.output.dtype
        if not isinstance(decoded, int) or decoded:
            work.dequantized = work.dequantized + int(decoded * DEQUANTIZE_MOVED) * count
            work.dequantizations += count
            work.launches += DEQUANTIZE_LAUNCHES * count
            moved = moved - int(decoded * (DEQUANTIZE_MOVED - 0.25))
        attention = op.name.endswith("_attention")
        of = (_key(flops), _key(moved), dtype, attention, dims and tuple([_key(size) for size in dims]))
        if of not in self._products:
            self._products[of] = Product(flops, moved, dtype, attention, 0, dims)
        self._counts[of] = self._counts.get(of, 0) + count

    def sum_up(self, nbytes: Size, count: int) -> None:
        """Gradients of one activation are added `count` times."""
        self._work.launches += count
        self._work.moved = self._work.moved + 3 * nbytes * count

    def work(self) -> Work:
        """All of it."""
        for key, moved in self._streams.items():
            self._work.stream(moved, self._counts[key])
        self._work.products = [product.times(self._counts[key]) for key, product in self._products.items()]
        return self._work


def _key(size: Any) -> Hashable:
    """A number, or an array of numbers, as something to look up."""
    return size if isinstance(size, int) else size.tobytes()


@dataclass(frozen=True, slots=True)
class NetworkWork:
    """The work of one micro-batch by phase."""

    forward: Work
    recompute: Work
    backward: Work


def network_work(network: Network, settings: Settings) -> NetworkWork:
    """Work of one forward and backward over all runs; checkpointed runs repeat their forward in the backward."""
    if network.recorded is not None:
        return network.recorded.work()
    forward, recompute, backward = _Tally(), _Tally(), _Tally()
    for run, count in _different(network.runs):
        _forward(run.block.ops, count, forward)
        if run.checkpointed and run.block.exit is not None and run.block.exit.requires_grad:
            _forward(recomputed(run.block, run.recomputation(settings)), count, recompute)
        _backward(run.block.ops, count, backward)
    return NetworkWork(forward.work(), recompute.work(), backward.work())


def _different(runs: Sequence[Run]) -> list[tuple[Run, int]]:
    """Every block once in each way in which it runs, and how often."""
    found: dict[tuple[int, bool, bool], tuple[Run, int]] = {}
    for run in runs:
        key = (id(run.block), run.checkpointed, run.reversible)
        first, count = found.get(key, (run, 0))
        found[key] = first, count + run.count
    return list(found.values())


def recomputed(block: Block, checkpointing: str) -> Sequence[Op]:
    """The ops of a checkpointed block that run again.

    "reentrant" and "reversible" run all of them. "non-reentrant" stops as soon as it has the last tensor that autograd saves, so
    the last projection does not run again (early stop, the default of torch/utils/checkpoint.py; `Walk` has the same rule).
    """
    if checkpointing in ("reentrant", "reversible"):
        return block.ops
    return block.ops[: stop_of(block.ops)]


def _forward(ops: Iterable[Op], count: int, work: _Tally) -> None:
    for op in ops:
        if op.launches:
            work.add(op, op.flops, op.moved, op.launches, count, op.decoded, op.dims)


def _backward(ops: Sequence[Op], count: int, work: _Tally) -> None:
    """Every gradient, and an addition for each further gradient of one activation (torch autograd/input_buffer.cpp)."""
    received: dict[int, list[Tensor]] = {}
    for op in ops:
        for gradient in op.gradients:
            if not gradient.of.name:
                received.setdefault(id(gradient.of), []).append(gradient.of)
            launches = 0 if gradient.nbytes is None or gradient.given is not None else gradient.launches
            moved = 0 if gradient.moved is None else gradient.moved
            if launches or not isinstance(moved, int) or moved:
                work.add(op, gradient.flops, moved, launches, count, gradient.decoded, gradient.dims)
    for tensors in received.values():
        extra = len(tensors) - 1
        if extra:
            work.sum_up(tensors[0].nbytes, extra * count)
