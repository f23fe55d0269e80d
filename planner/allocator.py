"""The CUDA caching allocator of PyTorch: which bytes a process reserves for the blocks that it asks for.

Follows the rules of c10/cuda/CUDACachingAllocator.cpp, torch 2.13, for one stream and the default configuration.
Requests are rounded to 512 bytes; up to 1 MiB they come from segments of 2 MiB, below 10 MiB from segments of 20 MiB,
above from a segment of their own in steps of 2 MiB. The smallest free block that fits is taken, the lowest of equal
ones; what is left of it becomes a free block, unless it is at most 1 MiB of a large segment. Freed blocks merge with
free neighbours of their segment. With `expandable_segments` each pool is one range of addresses that grows by pages of
2 or 20 MiB, and whatever a request leaves over is free.

Not modelled: several streams, `max_split_size_mb`, garbage collection, the retry after the driver has no memory left.
"""

from bisect import bisect_left, insort
from typing import Final

MIN_BLOCK: Final = 512
SMALL_SIZE: Final = 2**20
SMALL_SEGMENT: Final = 2 * 2**20
MIN_LARGE: Final = 10 * 2**20
LARGE_SEGMENT: Final = 20 * 2**20
ROUND_LARGE: Final = 2 * 2**20

_ADDRESS_BITS: Final = 80
_ADDRESS_SPACE: Final = LARGE_SEGMENT * 2**50
_USED, _FREE, _UNMAPPED = range(3)


class Block:
    """A stretch of a segment: `size` bytes at `address`, between its neighbours, of which `request` were asked for."""

    __slots__ = ("address", "next", "pool", "previous", "request", "size", "state")

    def __init__(self, size: int, address: int, pool: "_Pool", state: int) -> None:
        self.size = size
        self.address = address
        self.pool = pool
        self.state = state
        self.request = 0
        self.previous: Block | None = None
        self.next: Block | None = None


class _Pool:
    """The free blocks of one pool, ordered by size and then address, and its segments' sizes."""

    __slots__ = ("blocks", "keep_below", "keys", "page", "unmapped")

    def __init__(self, page: int, keep_below: int) -> None:
        self.page = page
        self.keep_below = keep_below
        self.keys: list[int] = []
        self.blocks: dict[int, Block] = {}
        self.unmapped: list[Block] = []

    def insert(self, block: Block) -> None:
        """Make a block available."""
        key = block.size << _ADDRESS_BITS | block.address
        self.keys.insert(bisect_left(self.keys, key), key)
        self.blocks[key] = block
        block.state = _FREE

    def remove(self, block: Block) -> None:
        """Take a free block out."""
        key = block.size << _ADDRESS_BITS | block.address
        del self.keys[bisect_left(self.keys, key)]
        del self.blocks[key]


class CachingAllocator:
    """Blocks handed out and segments held, for one device and one stream.

    Attributes:
        allocated_bytes: sum of the blocks in use, as `torch.cuda.memory_allocated` counts: with what was not split off.
        requested_bytes: the same without it: each request rounded up to 512 bytes.
        reserved_bytes: sum of the segments, as `torch.cuda.memory_reserved` counts.
        peak_allocated_bytes: highest `allocated_bytes` so far.
        peak_requested_bytes: highest `requested_bytes` so far.
        peak_reserved_bytes: highest `reserved_bytes` so far.
    """

    __slots__ = (
        "_expandable",
        "_large",
        "_small",
        "_top",
        "allocated_bytes",
        "peak_allocated_bytes",
        "peak_requested_bytes",
        "peak_reserved_bytes",
        "requested_bytes",
        "reserved_bytes",
    )

    def __init__(self, expandable_segments: bool = False) -> None:
        self.allocated_bytes = self.peak_allocated_bytes = 0
        self.requested_bytes = self.peak_requested_bytes = 0
        self.reserved_bytes = self.peak_reserved_bytes = 0
        self._expandable = expandable_segments
        self._small = _Pool(SMALL_SEGMENT, MIN_BLOCK)
        self._large = _Pool(LARGE_SEGMENT, MIN_BLOCK if expandable_segments else SMALL_SIZE + 1)
        self._top = 0
        if expandable_segments:
            for index, pool in enumerate((self._small, self._large)):
                pool.unmapped.append(Block(_ADDRESS_SPACE, index * _ADDRESS_SPACE, pool, _UNMAPPED))

    def malloc(self, size_bytes: int) -> Block:
        """A block of at least `size_bytes`, the handle that `free` takes. Raises ValueError for a negative size."""
        if size_bytes < 0:
            raise ValueError(f"malloc of {size_bytes} bytes: a size cannot be negative; pass 0 or more")
        request = -(-size_bytes // MIN_BLOCK) * MIN_BLOCK or MIN_BLOCK
        pool = self._small if request <= SMALL_SIZE else self._large
        keys = pool.keys
        index = bisect_left(keys, request << _ADDRESS_BITS)
        if index < len(keys):
            if self._expandable:
                index = _least_expandable(pool, index)
            block = pool.blocks.pop(keys.pop(index))
        elif self._expandable:
            block = self._expand(pool, request)
        else:
            block = self._segment(pool, request)
        remaining = block.size - request
        if remaining >= pool.keep_below:
            pool.insert(_split(block, request))
        block.state = _USED
        block.request = request
        self.requested_bytes += request
        self.allocated_bytes += block.size
        if self.allocated_bytes > self.peak_allocated_bytes:  # noqa: PLR1730 - max() is slower
            self.peak_allocated_bytes = self.allocated_bytes
        if self.requested_bytes > self.peak_requested_bytes:  # noqa: PLR1730
            self.peak_requested_bytes = self.requested_bytes
        return block

    def free(self, block: Block) -> None:
        """Give a block back; the segment stays reserved. Raises ValueError if it was given back before."""
        if block.state != _USED:
            raise ValueError("free of a block that is not in use; each handle of malloc is freed once")
        self.requested_bytes -= block.request
        self.allocated_bytes -= block.size
        pool = block.pool
        following = block.next
        if following is not None and following.state == _FREE:
            pool.remove(following)
            _absorb(block, following)
        before = block.previous
        if before is not None and before.state == _FREE:
            pool.remove(before)
            _absorb(before, block)
            block = before
        pool.insert(block)

    def empty_cache(self) -> None:
        """Return what no block uses to the driver: whole segments, or whole pages of expandable ones."""
        for pool in (self._small, self._large):
            for block in list(pool.blocks.values()):
                if self._expandable:
                    self._unmap(pool, block)
                elif block.previous is None and block.next is None:
                    pool.remove(block)
                    self.reserved_bytes -= block.size

    def _reserve(self, size: int) -> None:
        self.reserved_bytes += size
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)

    def _segment(self, pool: _Pool, request: int) -> Block:
        size = pool.page if request < MIN_LARGE else -(-request // ROUND_LARGE) * ROUND_LARGE
        block = Block(size, self._top, pool, _FREE)
        self._top += size
        self._reserve(size)
        return block

    def _expand(self, pool: _Pool, request: int) -> Block:
        """Map pages at the first unmapped stretch that, with the free blocks beside it, has room for the request."""
        first = next(block for block in map(_with_free_before, pool.unmapped) if _room(block, request) >= request)
        block = first
        while True:
            if block.state == _FREE:
                pool.remove(block)
            else:
                self._map(pool, block, request - (first.size if block is not first else 0))
            if block is not first:
                _absorb(first, block)
            if first.next is None or first.next.state == _USED:
                return first
            if first.size >= request and first.next.state == _UNMAPPED:
                return first
            block = first.next

    def _map(self, pool: _Pool, hole: Block, wanted: int) -> None:
        size = -(-wanted // pool.page) * pool.page
        pool.unmapped.remove(hole)
        if size < hole.size:
            insort(pool.unmapped, _split(hole, size), key=_address)
        self._reserve(hole.size)

    def _unmap(self, pool: _Pool, block: Block) -> None:
        """Unmap the whole pages of a free block; what is left at its ends stays free."""
        end = (block.address + block.size) // pool.page * pool.page
        start = -(-block.address // pool.page) * pool.page
        if start >= end:
            return
        pool.remove(block)
        if end < block.address + block.size:
            pool.insert(_split(block, end - block.address))
        if start > block.address:
            middle = _split(block, start - block.address)
            pool.insert(block)
            block = middle
        block.state = _UNMAPPED
        self.reserved_bytes -= block.size
        if block.next is not None and block.next.state == _UNMAPPED:
            pool.unmapped.remove(block.next)
            _absorb(block, block.next)
        if block.previous is not None and block.previous.state == _UNMAPPED:
            _absorb(block.previous, block)
        else:
            insort(pool.unmapped, block, key=_address)


def _address(block: Block) -> int:
    return block.address


def _split(block: Block, size: int) -> Block:
    """Cut a block after `size` bytes; gives the rest, in the same state."""
    rest = Block(block.size - size, block.address + size, block.pool, block.state)
    rest.previous = block
    rest.next = block.next
    if rest.next is not None:
        rest.next.previous = rest
    block.next = rest
    block.size = size
    return rest


def _absorb(block: Block, following: Block) -> None:
    """Grow `block` by its right neighbour."""
    block.size += following.size
    block.next = following.next
    if following.next is not None:
        following.next.previous = block


def _with_free_before(hole: Block) -> Block:
    return hole.previous if hole.previous is not None and hole.previous.state == _FREE else hole


def _room(block: Block | None, wanted: int) -> int:
    """Bytes from a block on that are free or unmapped, as far as they are wanted."""
    room = 0
    while block is not None and block.state != _USED and room < wanted:
        room += block.size
        block = block.next
    return room


def _least_expandable(pool: _Pool, index: int) -> int:
    """Best fit, a block beside unmapped addresses counting as large as it can become (`get_free_block`)."""

    def room(position: int) -> int:
        block = pool.blocks[pool.keys[position]]
        return block.size + (block.next.size if block.next is not None and block.next.state == _UNMAPPED else 0)

    while index + 1 < len(pool.keys) and room(index + 1) < room(index):
        index += 1
    return index
