"""Reserved memory of a traced program: its births and deaths, and the planner's own update, through the caching allocator."""

from collections.abc import Sequence

from tuneplan.planner.allocator import Block, CachingAllocator
from tuneplan.planner.device_memory import workspace_bytes
from tuneplan.planner.graph.tensor import GRADIENTS
from tuneplan.planner.memory import step_memory
from tuneplan.planner.models.network import Network
from tuneplan.planner.replay import Replay
from tuneplan.planner.replay_weights import Program, load, update
from tuneplan.planner.training.optimizers import Optimizer
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling.fallback.cuts import Cuts
from tuneplan.profiling.fallback.forms import Events, Ints
from tuneplan.profiling.products import PRODUCTS


def replay(
    events: Events,
    sizes: Ints,
    cuts: Cuts,
    network: Network,
    settings: Settings,
    optimizer: Optimizer,
    expandable_segments: bool = False,
    empty_cache_steps: int = 0,
) -> Replay:
    """Load, prepare and train on one card for two steps; see `planner.replay.replay`, whose loading and update these are.

    Where gradients are not accumulated the steps are the first micro-batch's alone.
    """
    allocator = CachingAllocator(expandable_segments)
    load(allocator, network, settings, Program())
    first, second, stop = cuts.starts
    stop = stop if settings.accumulating else second
    backwards = [stretches[0].first for stretches in cuts.backward]
    of_kind = [(op.startswith(PRODUCTS), "backward" if phase == "backward" else "forward") for phase, op, _ in events.names]
    storages, births, kinds = events.storage.tolist(), events.born.tolist(), events.kind.tolist()
    categories, rounded = events.category.tolist(), sizes.tolist()
    kept: dict[int, Block] = {}
    _birth_of_batch(allocator, events, rounded, kept, first)
    threads: set[str] = set()
    for step in range(2):
        empties = empty_cache_steps > 0 and step % empty_cache_steps == 0
        blocks: dict[int, Block] = {}
        for entry in range(first, stop):
            if empties and entry in backwards:
                allocator.empty_cache()
            storage = storages[entry]
            if not births[entry]:
                block = blocks.pop(storage, None) or kept.pop(storage, None)
                if block is not None:
                    allocator.free(block)
                continue
            product, thread = of_kind[kinds[storage]]
            if product and thread not in threads:
                threads.add(thread)
                allocator.malloc(workspace_bytes(settings.compute_capability))
            blocks[storage] = allocator.malloc(rounded[storage])
        update(allocator, network, optimizer, settings, first=step == 0)
        _let_go(allocator, blocks, categories)
    peak = step_memory(network, settings, optimizer).peak.peak_bytes
    return Replay(
        allocator.peak_reserved_bytes,
        allocator.peak_allocated_bytes,
        allocator.peak_requested_bytes,
        allocator.peak_reserved_bytes - peak,
        sum(run.count for run in network.runs if run.layered),
    )


def _birth_of_batch(allocator: CachingAllocator, events: Events, sizes: Sequence[int], kept: dict[int, Block], stop: int) -> None:
    """What is there before the first forward beside the weights."""
    for storage, born in zip(events.storage[:stop].tolist(), events.born[:stop].tolist(), strict=True):
        if born and not events.existing[storage]:
            kept[storage] = allocator.malloc(sizes[storage])


def _let_go(allocator: CachingAllocator, blocks: dict[int, Block], categories: Sequence[int]) -> None:
    """`zero_grad`, and what the next step's micro-batches make anew."""
    for own in (True, False):
        for storage in [s for s in blocks if (categories[s] == GRADIENTS) == own]:
            allocator.free(blocks.pop(storage))
