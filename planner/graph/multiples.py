"""Multiples of one array of sizes, each made once: a large search asks for the same few thousand again and again.

Most sizes of a walk over many micro-batches are a whole number times the array of them. Looking such a product up is faster than
making it. What is found here is read-only.
"""

from typing import Any

MOST_ARRAYS = 8
"""So many arrays are remembered; the first goes when another comes."""

_made: dict[int, dict[int, Any]] = {}
"""By the id of an array (which is kept as its own multiple by 1): its multiples."""
_rounded: dict[int, tuple[Any, Any]] = {}
"""By the id of a multiple: itself, and what it is rounded to."""


def remember(sizes: Any) -> None:
    """From now on multiples of this array, which nobody may write to, are made once."""
    if id(sizes) in _made:
        return
    if len(_made) >= MOST_ARRAYS:
        for multiple in _made.pop(next(iter(_made))).values():
            _rounded.pop(id(multiple), None)
    sizes.flags.writeable = False
    _made[id(sizes)] = {1: sizes}


def times(sizes: Any, count: int) -> Any:
    """`sizes * count`."""
    made = _made.get(id(sizes))
    if made is None:
        return sizes * count
    found = made.get(count)
    if found is None:
        found = made[count] = sizes * count
        found.flags.writeable = False
        _rounded[id(found)] = found, None
    return found


def rounded(size: Any, rest: int) -> Any:
    """`(size + rest) & ~rest`."""
    known = _rounded.get(id(size))
    if known is None:
        return (size + rest) & ~rest
    if known[1] is None:
        result = (size + rest) & ~rest
        result.flags.writeable = False
        _rounded[id(size)] = known = size, result
    return known[1]
