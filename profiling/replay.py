"""Reserved bytes of a tracked run: its births and deaths replayed through the caching allocator's rules."""

from dataclasses import dataclass

from tuneplan.planner.allocator import Block, CachingAllocator
from tuneplan.planner.device_memory import workspace_bytes
from tuneplan.profiling.products import PRODUCTS
from tuneplan.profiling.timeline import Timeline
from tuneplan.profiling.tracker import Allocation


@dataclass(frozen=True, slots=True)
class Reserved:
    """What the allocator held.

    Attributes:
        reserved_bytes: highest reservation, as `torch.cuda.max_memory_reserved`.
        allocated_bytes: most bytes in blocks, as `torch.cuda.max_memory_allocated`: with cuBLAS's workspaces.
        fragmentation_bytes: reserved less the most bytes that were live.
        events: the replay as a snapshot shows it: (action, allocation, address, bytes).
    """

    reserved_bytes: int
    allocated_bytes: int
    fragmentation_bytes: int
    events: tuple[tuple[str, Allocation | None, int, int], ...]


def replay(
    timeline: Timeline,
    compute_capability: tuple[int, int] = (8, 0),
    expandable_segments: bool = False,
    empty_cache_steps: int = 0,
) -> Reserved:
    """Play a timeline on an empty card.

    The forward and the backward run in threads of their own; each thread's cuBLAS handle takes its workspace from the allocator
    at its first product.

    Args:
        timeline: from the weights on, so that what is there before the steps is placed too.
        compute_capability: of the card, which decides the workspaces.
        expandable_segments: the allocator's setting of that name.
        empty_cache_steps: the cache is emptied before the backward of every so many steps, from the first on
            (`torch_empty_cache_steps` of the Trainer); 0 for never.
    """
    allocator = CachingAllocator(expandable_segments)
    blocks: dict[int, Block] = {}
    events: list[tuple[str, Allocation | None, int, int]] = []
    threads: set[str] = set()
    workspace = workspace_bytes(compute_capability)
    starts = [start for name, start, _ in timeline.spans if name == "backward"]
    emptied = set(starts[::empty_cache_steps]) if empty_cache_steps else set()
    live = highest = 0
    for index, (born, allocation) in enumerate(timeline.log):
        if index in emptied:
            allocator.empty_cache()
        if not born:
            block = blocks.pop(id(allocation))
            events.append(("free", allocation, block.address, block.request))
            allocator.free(block)
            live -= allocation.size_bytes
            continue
        thread = "backward" if allocation.phase == "backward" else "forward"
        if thread not in threads and allocation.op.startswith(PRODUCTS):
            threads.add(thread)
            block = allocator.malloc(workspace)
            events.append(("alloc", None, block.address, block.request))
        block = blocks[id(allocation)] = allocator.malloc(allocation.size_bytes)
        events.append(("alloc", allocation, block.address, block.request))
        live += allocation.size_bytes
        highest = max(highest, live)
    reserved = allocator.peak_reserved_bytes
    return Reserved(reserved, allocator.peak_allocated_bytes, reserved - highest, tuple(events))
