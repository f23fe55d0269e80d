"""Every storage's birth and death while a training step runs, on any device (meta, CPU or CUDA).

A dispatch mode sees every operator that autograd, the optimizer and the model call; each new storage is counted when it
is first seen and given back when its last reference dies. What a fused kernel allocates and frees inside one operator is
invisible here.
"""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

BLOCK_BYTES = 512
_ADD = torch.ops.aten.add.Tensor
_ITEM = torch.ops.aten._local_scalar_dense.default


@dataclass(frozen=True, slots=True)
class Event:
    """One birth: its size and what was live right after it [bytes], and which operator in which phase asked for it."""

    live_bytes: int
    size_bytes: int
    phase: str
    op: str


class StorageTracker(TorchDispatchMode):
    """Live bytes over a step, each storage rounded up to the CUDA allocator's block of 512 bytes.

    Use it as a context manager around the step and set `phase` as the step goes on. Only tensors on `device_type` are
    counted. On the meta device a question about values (`.item()`) is answered with 1, which transformers' mask code
    reads as "no padding, not packed".
    """

    def __init__(self, device_type: str = "meta", block_bytes: int = BLOCK_BYTES) -> None:
        super().__init__()
        self.device_type = device_type
        self.block_bytes = block_bytes
        self.live_bytes = 0
        self.phase = "load"
        self.events: list[Event] = []
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def watch(self, tensors: Iterable[torch.Tensor], op: str = "existing") -> None:
        """Count storages that were made outside the tracked region (parameters, buffers, optimizer state)."""
        for tensor in tensors:
            self._see(tensor, op)

    def peak(self, *phases: str) -> Event:
        """The event with most live bytes, over the phases named (all of them if none is)."""
        return max((e for e in self.events if not phases or e.phase in phases), key=lambda e: e.live_bytes)

    def _see(self, tensor: torch.Tensor, op: str) -> None:
        if tensor.device.type != self.device_type:
            return
        if tensor.layout is torch.sparse_coo:
            self.watch((tensor._indices(), tensor._values()), op)
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = -(-storage.nbytes() // self.block_bytes) * self.block_bytes

        def forget(_: object) -> None:
            del self._alive[key]
            self.live_bytes -= size

        self._alive[key] = weakref.ref(storage, forget)
        self.live_bytes += size
        self.events.append(Event(self.live_bytes, size, self.phase, op))

    def _is_accumulation(self, args: tuple[Any, ...]) -> bool:
        """Whether autograd would add this gradient in place if no dispatch mode were looking.

        Mirrors `can_accumulate_inplace` of torch/csrc/autograd/input_buffer.cpp, which copies whenever a mode is active: the
        earlier gradient must be dense and the only user of its storage (two users here: the tensor and our handle on it).
        """
        if self.phase != "backward" or torch.is_grad_enabled():
            return False
        old, new = args[0], args[1]
        if not isinstance(new, torch.Tensor) or old.shape != new.shape or old.dtype != new.dtype:
            return False
        storage = old.untyped_storage()
        native: Any = torch._C  # its stubs lack _storage_Use_Count
        users: int = native._storage_Use_Count(storage._cdata)
        return users <= 2 and bool(torch.ops.aten.is_non_overlapping_and_dense(old))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is _ITEM and args[0].device.type == "meta":
            return 1
        if func is _ADD and self._is_accumulation(args):
            return args[0].add_(args[1])
        out = func(*args, **(kwargs or {}))
        for leaf in tree_iter(out):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf, func.__name__)
        return out
