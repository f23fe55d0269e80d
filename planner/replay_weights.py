"""What a replay does to the allocator outside forward and backward: loading, the method's preparation, and the update."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from tuneplan.planner.allocator import MIN_BLOCK, SMALL_SIZE, Block, CachingAllocator
from tuneplan.planner.graph.tensor import BITS, elements, round_block
from tuneplan.planner.methods.formats import BLOCK_FORMATS, QUANTIZED
from tuneplan.planner.models.network import Network
from tuneplan.planner.models.parameter import Parameter
from tuneplan.planner.training.optimizers import Optimizer, state_bytes, step_scratch
from tuneplan.planner.training.settings import Settings


@dataclass(frozen=True, slots=True)
class Program:
    """What the training program does that decides which bytes stay reserved.

    Attributes:
        device_map: the model is loaded with a `device_map`, so transformers reserves its size in one piece first
            (`caching_allocator_warmup`, transformers 5.23 modeling_utils.py); None: only if it is quantized, when
            transformers sets a map itself.
        empties_cache: the cache is emptied after k-bit preparation (pull request 3293 of peft, in 0.21.2).
    """

    device_map: bool | None = None
    empties_cache: bool = True


USUAL = Program()
"""The habits of the versions that tuneplan mirrors."""


def _unrolled(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Parameters one by one: those of a stack of layers, which stand together, layer by layer."""
    found: list[Parameter] = []
    for layered, group in groupby(parameters, key=lambda p: "*" in p.name):
        together = list(group)
        if layered:
            together = [p for i in range(max(p.count for p in together)) for p in together if i < p.count]
        found += together
    return found


def load(allocator: CachingAllocator, network: Network, settings: Settings, program: Program) -> None:
    """Place the weights: base model in the order of the state dict's keys, k-bit preparation, then adapters.

    Mirrors `convert_and_load_state_dict_in_model` (transformers 5.23 core_model_loading.py), one weight after another,
    and `prepare_model_for_kbit_training` (peft 0.21.2 utils/other.py).
    """
    width = BITS[settings.dtype] // 8
    base = _unrolled([p for p in network.parameters if not p.adapter])
    if program.device_map if program.device_map is not None else network.quantized:
        sizes = [elements(p.shape) // 2 if p.storage in BLOCK_FORMATS else elements(p.shape) * width for p in base]
        allocator.free(allocator.malloc(sum(sizes)))
    dense: dict[int, list[Block]] = {}
    for p in _unrolled(sorted([p for p in network.parameters if not p.adapter], key=lambda p: p.name)):
        if p.storage in BLOCK_FORMATS:
            _quantize(allocator, p)
        elif p.storage in QUANTIZED:
            whole = allocator.malloc(elements(p.shape) * width)
            allocator.malloc(p.stored_bytes)
            allocator.free(whole)
        else:
            dense.setdefault(id(p), []).append(allocator.malloc(elements(p.shape) * width))
    cast = [p for p in base if p.storage not in (*QUANTIZED, settings.dtype)]
    for p in cast:
        allocator.malloc(p.stored_bytes)
        allocator.free(dense[id(p)].pop(0))
    if cast and program.empties_cache:
        allocator.empty_cache()
    for p in _unrolled([p for p in network.parameters if p.adapter]):
        allocator.malloc(p.stored_bytes)


def _quantize(allocator: CachingAllocator, p: Parameter) -> None:
    """A weight's 16-bit copy, then packed values and scales, as `quantize_4bit` makes them (bitsandbytes 0.50)."""
    form = BLOCK_FORMATS[p.storage]
    blocks = -(-elements(p.shape) // form.block)
    dense = allocator.malloc(2 * elements(p.shape))
    scales = allocator.malloc(4 * blocks)
    packed = allocator.malloc(elements(p.shape) * form.bits // 8)
    kept = scales
    if form.nested:
        centered = allocator.malloc(4 * blocks)
        kept = allocator.malloc(blocks)
        allocator.free(centered)
        allocator.free(scales)
    allocator.malloc(p.stored_bytes - packed.request - kept.request)
    allocator.free(dense)


def update(allocator: CachingAllocator, network: Network, optimizer: Optimizer, settings: Settings, first: bool) -> None:
    """Clipping and the optimizer's step; the first makes the states, each a block with its scales."""
    master = settings.precision == "master-weights"
    trained = [p for p in network.parameters if p.trainable]
    order = _unrolled(trained)
    _touch(allocator, _pieces(MIN_BLOCK * len(order), SMALL_SIZE))
    if first:
        parts = optimizer.states if optimizer.states and not optimizer.factored and not master else 1
        states = {id(p): state_bytes(optimizer, [replace(p, count=1)], master).device for p in trained}
        for size in [states[id(p)] for p in order if states[id(p)]]:
            for _ in range(parts):
                allocator.malloc(size // parts)
    if optimizer.scratch == "foreach":
        scratch = {id(p): step_scratch(optimizer, [replace(p, count=1)], master) for p in trained}
        _touch(allocator, [scratch[id(p)] for p in order])
    elif trained:
        largest = max([round_block(4 * elements(p.shape)) for p in trained])
        _touch(allocator, _pieces(step_scratch(optimizer, trained, master), largest))


def _pieces(total: int, largest: int) -> list[int]:
    return [min(largest, total - start) for start in range(0, total, largest)]


def _touch(allocator: CachingAllocator, sizes: Sequence[int]) -> None:
    for block in [allocator.malloc(size) for size in sizes]:
        allocator.free(block)
