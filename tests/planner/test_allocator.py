"""The caching allocator: scenarios worked out by hand, then laws."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneplan.planner.allocator import Block, CachingAllocator
from tuneplan.planner.units import KIB, MIB


def test_a_byte_takes_a_block_of_512_and_a_segment_of_2_mib() -> None:
    """Requests are rounded to 512 bytes, and the small pool reserves 2 MiB at a time."""
    a = CachingAllocator()
    a.malloc(1)
    assert 512 == a.allocated_bytes == a.requested_bytes
    assert 2 * MIB == a.reserved_bytes


def test_zero_bytes_take_a_block_too() -> None:
    """The smallest block is 512 bytes."""
    a = CachingAllocator()
    a.malloc(0)
    assert 512 == a.allocated_bytes


def test_two_requests_of_one_mib_share_a_small_segment() -> None:
    """1 MiB is the largest small request; the third needs a second segment."""
    a = CachingAllocator()
    a.malloc(MIB)
    a.malloc(MIB)
    assert 2 * MIB == a.reserved_bytes
    a.malloc(MIB)
    assert 4 * MIB == a.reserved_bytes


@pytest.mark.parametrize(
    ("request_bytes", "segment"),
    [
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 1, 12 * MIB),
        (101 * MIB, 102 * MIB),
    ],
)
def test_segment_sizes(request_bytes: int, segment: int) -> None:
    """Above 1 MiB a segment has 20 MiB; from 10 MiB on it is the request in steps of 2 MiB."""
    a = CachingAllocator()
    a.malloc(request_bytes)
    assert segment == a.reserved_bytes


def test_what_is_at_most_one_mib_stays_with_the_block() -> None:
    """In the large pool a rest of 1 MiB is not split off: torch counts it as allocated, though it was not requested."""
    a = CachingAllocator()
    a.malloc(11 * MIB)
    assert 12 * MIB == a.allocated_bytes
    assert 11 * MIB == a.requested_bytes
    assert 12 * MIB == a.reserved_bytes


def test_what_is_more_than_one_mib_is_split_off() -> None:
    """512 bytes more than 1 MiB are a block of their own, which a request of that size takes."""
    a = CachingAllocator()
    a.malloc(11 * MIB - 512)
    assert 11 * MIB - 512 == a.allocated_bytes
    a.malloc(MIB + 512)
    assert 12 * MIB == a.allocated_bytes == a.reserved_bytes


def test_the_smallest_block_that_fits_is_taken() -> None:
    """Best fit: of free blocks of 40 and 30 MiB a request of 25 MiB takes the latter, and the former still has 40."""
    a = CachingAllocator()
    wide, narrow = a.malloc(40 * MIB), a.malloc(30 * MIB)
    a.free(wide)
    a.free(narrow)
    a.malloc(25 * MIB)
    a.malloc(40 * MIB)
    assert 70 * MIB == a.reserved_bytes


def test_the_lower_of_two_equal_blocks_is_taken() -> None:
    """Ties go to the lower address, so a free block is left beside the upper one."""
    a = CachingAllocator()
    first, second = a.malloc(30 * MIB), a.malloc(30 * MIB)
    a.free(second)
    a.free(first)
    assert first.address == a.malloc(30 * MIB).address


def test_freed_neighbours_merge() -> None:
    """Three blocks of a segment, freed in any order, are one block again."""
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 0, 1), (2, 1, 0), (1, 2, 0)):
        a = CachingAllocator()
        blocks = [a.malloc(6 * MIB) for _ in range(3)]
        for index in order:
            a.free(blocks[index])
        a.malloc(9 * MIB)
        a.malloc(9 * MIB)
        assert 20 * MIB == a.reserved_bytes


def test_blocks_of_two_segments_do_not_merge() -> None:
    """40 MiB free in two segments of 20 do not serve a request of 40: this is fragmentation."""
    a = CachingAllocator()
    for block in [a.malloc(20 * MIB) for _ in range(2)]:
        a.free(block)
    a.malloc(40 * MIB)
    assert 80 * MIB == a.reserved_bytes
    assert 40 * MIB == a.allocated_bytes


def test_the_pools_do_not_share() -> None:
    """A free large segment does not serve a small request."""
    a = CachingAllocator()
    a.free(a.malloc(20 * MIB))
    a.malloc(512 * KIB)
    assert 22 * MIB == a.reserved_bytes


def test_empty_cache_releases_wholly_free_segments_only() -> None:
    """A segment with one block in use stays, the other goes; the peak remembers both."""
    a = CachingAllocator()
    a.malloc(2 * MIB)
    a.free(a.malloc(30 * MIB))
    a.empty_cache()
    assert 20 * MIB == a.reserved_bytes
    assert 50 * MIB == a.peak_reserved_bytes


def test_peaks_are_those_of_the_moment() -> None:
    """Allocated bytes peak at 30 + 20 MiB although 40 and 20 were asked for one after the other."""
    a = CachingAllocator()
    first, second = a.malloc(30 * MIB), a.malloc(20 * MIB)
    a.free(first)
    a.free(second)
    a.malloc(40 * MIB)
    assert 50 * MIB == a.peak_allocated_bytes == a.peak_requested_bytes
    assert 90 * MIB == a.peak_reserved_bytes


def test_expandable_segments_grow_and_join() -> None:
    """Two freed neighbours of 20 MiB serve 40, because the range is one; a request of 50 maps one more page."""
    a = CachingAllocator(expandable_segments=True)
    for block in [a.malloc(20 * MIB) for _ in range(2)]:
        a.free(block)
    big = a.malloc(40 * MIB)
    assert 40 * MIB == a.reserved_bytes
    a.free(big)
    a.malloc(50 * MIB)
    assert 60 * MIB == a.reserved_bytes


def test_expandable_segments_give_back_whole_pages() -> None:
    """Only the pages that lie wholly in a free stretch are unmapped, and they can be mapped again."""
    a = CachingAllocator(expandable_segments=True)
    a.malloc(10 * MIB)
    hole = a.malloc(60 * MIB)
    a.malloc(10 * MIB)
    assert 80 * MIB == a.reserved_bytes
    a.free(hole)
    a.empty_cache()
    assert 40 * MIB == a.reserved_bytes
    assert hole.address == a.malloc(60 * MIB).address
    assert 80 * MIB == a.reserved_bytes == a.allocated_bytes


def test_a_block_is_freed_once() -> None:
    """A second free of one handle is a mistake of the caller."""
    a = CachingAllocator()
    block = a.malloc(512)
    a.free(block)
    with pytest.raises(ValueError, match="freed once"):
        a.free(block)


def test_a_negative_size_is_refused() -> None:
    """No request has fewer than 0 bytes."""
    with pytest.raises(ValueError, match="-1 bytes"):
        CachingAllocator().malloc(-1)


SIZES = st.one_of(st.integers(0, 3 * MIB), st.integers(0, 64 * MIB))
STEPS = st.lists(st.tuples(SIZES, st.integers(0, 2**16), st.booleans()), max_size=120)


def _walk(a: CachingAllocator, steps: list[tuple[int, int, bool]]) -> list[Block]:
    """Allocate a size or free a live block, and empty the cache now and then; check the books at every step."""
    live: list[Block] = []
    for size, choice, frees in steps:
        if frees and live:
            a.free(live.pop(choice % len(live)))
        else:
            live.append(a.malloc(size))
        if choice % 17 == 0:
            a.empty_cache()
        assert sum(block.request for block in live) == a.requested_bytes
        assert sum(block.size for block in live) == a.allocated_bytes
        assert a.requested_bytes <= a.allocated_bytes <= a.reserved_bytes
        spans = sorted((block.address, block.size) for block in live)
        assert all(start + size <= after for (start, size), (after, _) in pairwise(spans))
    return live


@given(STEPS, st.booleans())
def test_the_books_balance(steps: list[tuple[int, int, bool]], expandable: bool) -> None:
    """Live blocks never overlap and add up; all freed and the cache emptied, nothing is reserved."""
    a = CachingAllocator(expandable)
    for block in _walk(a, steps):
        a.free(block)
    a.empty_cache()
    assert (0, 0, 0) == (a.requested_bytes, a.allocated_bytes, a.reserved_bytes)
    assert a.peak_requested_bytes <= a.peak_allocated_bytes <= a.peak_reserved_bytes


@given(st.lists(SIZES, max_size=60), st.booleans())
def test_reserved_only_grows_without_empty_cache(sizes: list[int], expandable: bool) -> None:
    """Allocating and freeing never returns a segment; the same mix again may need another one, as best fit is not optimal."""
    a = CachingAllocator(expandable)
    before = 0
    for _ in range(2):
        for block in [a.malloc(size) for size in sizes]:
            assert before <= a.reserved_bytes
            before = a.reserved_bytes
            a.free(block)


@given(SIZES, st.integers(1, 30), st.booleans())
def test_equal_requests_again_need_no_new_segment(size: int, count: int, expandable: bool) -> None:
    """Blocks of one size that were all freed serve as many of that size again."""
    a = CachingAllocator(expandable)
    reserved = []
    for _ in range(2):
        for block in [a.malloc(size) for _ in range(count)]:
            a.free(block)
        reserved.append(a.reserved_bytes)
    assert reserved[0] == reserved[1]


@given(st.lists(st.integers(1, 64 * MIB), max_size=60))
def test_expandable_segments_waste_less_than_a_page_each(sizes: list[int]) -> None:
    """Without a death a range is full but for its last page: 2 MiB of the small pool and 20 MiB of the large one."""
    a = CachingAllocator(expandable_segments=True)
    for size in sizes:
        a.malloc(size)
    assert a.reserved_bytes < a.allocated_bytes + 22 * MIB
