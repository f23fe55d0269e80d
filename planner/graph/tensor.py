"""Tensors, storages and data types of the symbolic step.

A size is an `int` or a numpy `int64` array of any shape: every function of the graph and of the ledger takes both, so that
one walk gives one configuration or many at once.
"""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tuneplan.planner.graph import multiples

Size: TypeAlias = int

BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "int64": 64, "int32": 32, "uint8": 8, "bool": 8, "complex64": 64}

WEIGHTS, GRADIENTS, OPTIMIZER_STATES, ACTIVATIONS, LOGITS, TEMPORARY, KV_CACHE = range(7)
CATEGORIES = ("weights", "gradients", "optimizer_states", "activations", "logits", "temporary", "kv_cache")

BLOCK_BYTES = 512
_REST = BLOCK_BYTES - 1


def round_block(size_bytes: Size) -> Size:
    """Bytes that the CUDA caching allocator counts for a request: rounded up to 512 (kMinBlockSize, CUDACachingAllocator.cpp)."""
    if type(size_bytes) is int:
        return (size_bytes + _REST) & ~_REST
    rounded: Size = multiples.rounded(size_bytes, _REST)
    return rounded


def elements(shape: tuple[Size, ...]) -> Size:
    """Number of elements of a shape."""
    return _times(1, shape)


def _times(count: int, shape: tuple[Size, ...]) -> Size:
    """A number times all dimensions, whole ones first: an array is then multiplied once."""
    many: Any = None
    for dimension in shape:
        if type(dimension) is int:
            count *= dimension
        else:
            many = dimension if many is None else many * dimension
    result: Size = count if many is None else multiples.times(many, count)
    return result


def _element_bytes(shape: tuple[Size, ...], dtype: str) -> Size:
    return _times(BITS[dtype] // 8, shape)


def same_shape(a: tuple[Size, ...], b: tuple[Size, ...]) -> bool:
    """Whether two shapes agree in every dimension (for arrays: in every configuration)."""
    if a is b:
        return True
    if len(a) != len(b):
        return False
    for x, y in zip(a, b, strict=True):
        equal: Any = x is y or x == y
        if equal is False or (equal is not True and not equal.all()):
            return False
    return True


@dataclass(slots=True, eq=False)
class Storage:
    """A piece of device memory: bytes as the allocator counts them, and what it is for (one of CATEGORIES, by index)."""

    nbytes: Size
    category: int


@dataclass(slots=True, eq=False)
class Tensor:
    """A view of a storage. A parameter has a name; any other tensor has none.

    `crosses`: it is made in one block and read by layers of others (an encoder's output), so that its gradient is summed up
    over all of them.
    """

    storage: Storage
    shape: tuple[Size, ...]
    dtype: str
    requires_grad: bool = False
    name: str = ""
    crosses: bool = False
    _nbytes: Size | None = field(default=None, init=False, repr=False)

    @property
    def numel(self) -> Size:
        """Number of elements."""
        return elements(self.shape)

    @property
    def nbytes(self) -> Size:
        """Bytes of the elements, without the allocator's rounding."""
        found = self._nbytes
        if found is None:
            found = self._nbytes = _element_bytes(self.shape, self.dtype)
        return found


def tensor_bytes(shape: tuple[Size, ...], dtype: str) -> Size:
    """Bytes of a fresh contiguous tensor as the allocator counts them."""
    return round_block(_element_bytes(shape, dtype))
