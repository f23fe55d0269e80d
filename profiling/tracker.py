"""Every storage's birth and death while a training step runs, on any device (meta, CPU or CUDA).

A dispatch mode sees every operator that autograd, the optimizer and the model call; each new storage is recorded when it is
first seen and given back when its last reference dies. What a fused kernel allocates and frees inside one operator is
invisible here, but for bitsandbytes' 4-bit product, whose inner buffers are known from its source.
"""

import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from tuneplan.planner.graph.tensor import ACTIVATIONS, LOGITS, TEMPORARY, WEIGHTS
from tuneplan.profiling import masked_places, meta_results

BLOCK_BYTES = 512
_ADD = torch.ops.aten.add.Tensor
_INDEX_PUT = torch.ops.aten.index_put.default
_IN_PLACE = {
    _INDEX_PUT: torch.ops.aten.index_put_.default,
    torch.ops.aten.scatter.src: torch.ops.aten.scatter_.src,
    torch.ops.aten.scatter_add.default: torch.ops.aten.scatter_add_.default,
}
"""What backward formulas do in place unless a dispatch mode is looking (`areAnyTensorSubclassLike` of FunctionsManual.cpp)."""
_SCATTERED = torch.ops.aten.masked_scatter_backward.default
_GROUPED = torch.ops.aten._grouped_mm.default
_BINCOUNT = torch.ops.aten.bincount.default
_CHECKED = torch.ops.aten._is_all_true.default
_ITEM = torch.ops.aten._local_scalar_dense.default
_GEMM_4BIT = "gemm_4bit.default"
"""By name: who tracks code that quantizes nothing need not have bitsandbytes, nor wait for its import."""
_LIBRARIES = (os.path.dirname(torch.__file__), os.path.dirname(__file__))
_native: Any = torch._C  # its stubs lack what is used here


@dataclass(slots=True, eq=False)
class Allocation:
    """One storage.

    Attributes:
        size_bytes: rounded up to the allocator's block.
        phase: in which it was born.
        op: the operator that made it, such as "mm.default".
        module: path of the module that ran, or whose backward ran; "" outside the model.
        site: code and line number that called torch, for a backward those of the forward.
        category: what it is for, an index of the planner's CATEGORIES.
    """

    size_bytes: int
    phase: str
    op: str
    module: str
    site: tuple[CodeType | None, int]
    category: int

    @property
    def line(self) -> str:
        """File and line of `site`, joined by a colon; "" where it is not known."""
        code, number = self.site
        return f"{code.co_filename}:{number}" if code is not None else ""


NOWHERE: tuple[None, int] = (None, 0)


class StorageTracker(TorchDispatchMode):
    """Live bytes over a step, each storage rounded up to the CUDA allocator's block of 512 bytes.

    Use it as a context manager around the step and set `phase` as the step goes on. Only tensors on `device_type` are
    counted. On the meta device a question about values (`.item()`) is answered with `answer`: 1 is read by transformers' mask
    code as "no padding, not packed", 0 as "padded".

    Attributes:
        live_bytes: of all storages that are alive.
        phase: "load", "forward", "backward", "optimizer_step" or whatever the caller names.
        log: births (True) and deaths (False) in the order in which they happened.
        phases: the name of each phase and where in `log` it starts.
        recomputing: a context for what checkpointing runs again in the backward.
        places: that a boolean mask has, which the meta device cannot count.
    """

    def __init__(self, device_type: str = "meta", block_bytes: int = BLOCK_BYTES, vocabulary: int = 0, answer: int = 1) -> None:
        """Arguments: the device to count on, the block to round to, the vocabulary's size (it tells logits), the answer."""
        super().__init__()
        self.device_type = device_type
        self.block_bytes = block_bytes
        self.vocabulary = vocabulary
        self.answer = answer
        self.places = 0
        self.live_bytes = 0
        self.log: list[tuple[bool, Allocation]] = []
        self.phases: list[tuple[str, int]] = [("load", 0)]
        self._phase = "load"
        self._alive: dict[int, tuple[weakref.ref[torch.UntypedStorage], Allocation]] = {}
        self._overlooked: dict[int, torch.Tensor] = {}
        self._names: dict[int, str] = {}
        self._modules: list[str] = [""]
        self._forward_of: dict[int, tuple[str, tuple[CodeType | None, int]]] = {}
        self._call: Callable[..., Any] | None = None
        self.recomputing: Callable[[], AbstractContextManager[object]] = nullcontext
        self._resize: Any = None

    @property
    def phase(self) -> str:
        """What the program is doing."""
        return self._phase

    @phase.setter
    def phase(self, name: str) -> None:
        self._phase = name
        self.phases.append((name, len(self.log)))

    def watch(self, tensors: Iterable[torch.Tensor], op: str = "existing", category: int = WEIGHTS) -> None:
        """Count storages that were made outside the tracked region (parameters, buffers, optimizer state)."""
        for tensor in tensors:
            self._see(tensor, op, category)

    def overlook(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count these nowhere: what only a step without values is given."""
        self._overlooked.update({tensor.untyped_storage()._cdata: tensor for tensor in tensors})

    @property
    def alive(self) -> list[weakref.ref[torch.UntypedStorage]]:
        """The storages that are alive, held weakly."""
        return [reference for reference, _ in self._alive.values()]

    def classify(self, tensors: Iterable[torch.Tensor | None], category: int) -> None:
        """Say what storages that are alive are for; tensors that are not counted are passed over."""
        for tensor in tensors:
            if tensor is not None and tensor.layout is torch.strided:
                entry = self._alive.get(tensor.untyped_storage()._cdata)
                if entry is not None:
                    entry[1].category = category

    def name_modules(self, model: nn.Module) -> None:
        """Learn the paths of a model's modules, for `Allocation.module`."""
        self._names = {id(module): name for name, module in model.named_modules()}

    def touch(self, size_bytes: int, op: str) -> None:
        """A buffer that lives inside one operator."""
        allocation = self._birth(size_bytes, op, TEMPORARY)
        self._death(allocation)

    def __enter__(self) -> "StorageTracker":
        """Start to record; modules are followed by way of `nn.Module.__call__`."""
        anything: Any = nn.Module
        original = self._call = anything.__call__
        names, stack = self._names, self._modules

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            name = names.get(id(module))
            if name is None:
                return original(module, *args, **kwargs)
            again = len(stack) == 1 and self._phase == "backward"
            stack.append(name)
            try:
                with self.recomputing() if again else nullcontext():
                    return original(module, *args, **kwargs)
            finally:
                stack.pop()

        anything.__call__ = call
        storages: Any = torch.UntypedStorage
        resize = self._resize = storages.resize_

        def resized(storage: Any, size: int) -> Any:
            result = resize(storage, size)
            self._resized(storage)
            return result

        storages.resize_ = resized  # FSDP frees and refills storages by it
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Stop recording."""
        anything: Any = nn.Module
        anything.__call__ = self._call
        storages: Any = torch.UntypedStorage
        storages.resize_ = self._resize
        super().__exit__(*exception)

    def _birth(self, size_bytes: int, op: str, category: int) -> Allocation:
        size = -(-size_bytes // self.block_bytes) * self.block_bytes
        module, site = self._where()
        allocation = Allocation(size, self._phase, op, module, site, category)
        self.live_bytes += size
        self.log.append((True, allocation))
        return allocation

    def _death(self, allocation: Allocation) -> None:
        self.live_bytes -= allocation.size_bytes
        self.log.append((False, allocation))

    def _see(self, tensor: torch.Tensor, op: str, category: int | None = None) -> None:
        tensor = getattr(tensor, "_local_tensor", tensor)  # of a tensor that is split over ranks, this rank's part
        if tensor.device.type != self.device_type:
            return
        if tensor.layout is not torch.strided:
            if tensor.layout is torch.sparse_coo:
                for piece in (tensor._indices(), tensor._values()):
                    self._see(piece, op, category)
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive or key in self._overlooked:
            return
        allocation = self._birth(storage.nbytes(), op, self._category(tensor) if category is None else category)

        def forget(_: object) -> None:
            self._death(self._alive.pop(key)[1])

        self._alive[key] = (weakref.ref(storage, forget), allocation)

    def _resized(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        entry = self._alive.get(key)
        if entry is None or entry[1].size_bytes == -(-storage.nbytes() // self.block_bytes) * self.block_bytes:
            return
        self._death(entry[1])
        self._alive[key] = (entry[0], self._birth(storage.nbytes(), "resize_", entry[1].category))

    def _category(self, tensor: torch.Tensor) -> int:
        """Logits are known by their last dimension; all else that a forward makes is an activation."""
        if self.vocabulary and tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary and self._phase != "optimizer_step":
            return LOGITS
        return ACTIVATIONS if self.in_forward else TEMPORARY

    @property
    def in_forward(self) -> bool:
        """Whether the model's forward runs: in its own phase, or again in the backward of a checkpointed region."""
        again = self._phase == "backward" and (len(self._modules) > 1 or torch.is_grad_enabled())
        return again or self._phase == "forward"

    def _where(self) -> tuple[str, tuple[CodeType | None, int]]:
        """The module and the line of code; in a backward those of the forward that autograd's node came from."""
        if self._phase == "backward" and not self.in_forward:
            node = _native._current_autograd_node()
            if node is not None:
                return self._forward_of.get(node._sequence_nr(), ("", NOWHERE))
        return self._modules[-1], _site()

    def _is_accumulation(self, args: tuple[Any, ...]) -> bool:
        """Whether autograd would add this gradient in place if no dispatch mode were looking.

        Mirrors `can_accumulate_inplace` of torch/csrc/autograd/input_buffer.cpp, which copies whenever a mode is active: the
        earlier gradient must be dense and the only user of its storage (two users here: the tensor and our handle on it).
        """
        if self._phase != "backward" or torch.is_grad_enabled():
            return False
        old, new = args[0], args[1]
        if not isinstance(new, torch.Tensor) or old.shape != new.shape or old.dtype != new.dtype:
            return False
        storage = old.untyped_storage()
        users: int = _native._storage_Use_Count(storage._cdata)
        return users <= 2 and bool(torch.ops.aten.is_non_overlapping_and_dense(old))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is _CHECKED and args[0].device.type == "meta":
            return torch.ones((), dtype=torch.bool)  # a check of the model's code (`torch._check_tensor_all`)
        told = masked_places.counts(func, args, kwargs or {}, self.places)
        if told is not None:
            return told
        if func is _ITEM and args[0].device.type == "meta":
            return bool(self.answer) if args[0].dtype is torch.bool else self.answer
        if func is _ADD and self._is_accumulation(args):
            return args[0].add_(args[1])
        if func in _IN_PLACE and self._phase == "backward" and not torch.is_grad_enabled() and not _overwrites(func, args):
            return _IN_PLACE[func](*args, **(kwargs or {}))
        if self.in_forward:
            # autograd numbers its nodes before it runs the operator: this one's is the last number given out
            self._forward_of[torch._C._autograd._get_sequence_nr() - 1] = (self._modules[-1], _site())
        if func is _GROUPED and args[0].device.type == "meta" and args[0].dtype is not torch.bfloat16:
            out = _grouped_in_another_dtype(args, kwargs or {})
        elif func is _SCATTERED and args[0].device.type == "meta":  # it counts the places of the mask
            out = args[0].new_empty(args[2])
        elif func is _BINCOUNT and args[0].device.type == "meta" and len(args) == 3 and args[1] is None and args[2]:
            out = args[0].new_empty(args[2], dtype=torch.int64)  # of tokens by expert, say: no value is beyond the length named
        else:
            rows = masked_places.result(func, args, self.places)
            out = meta_results.run(func, args, kwargs or {}) if rows is None else rows
        for leaf in tree_iter(out):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf, func.__name__)
        if func.__name__ == _GEMM_4BIT and func.namespace == "bitsandbytes":
            self.touch(_dequantized_bytes(args, kwargs or {}), func.__name__)
        return out


def _overwrites(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether it is the gradient of what `index_put_` wrote over, which is a copy (derivatives.yaml): it does not accumulate."""
    return func is _INDEX_PUT and not (len(args) > 3 and args[3])


def _site() -> tuple[CodeType | None, int]:
    """The innermost caller outside torch and this package's own profiling code."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if not _in_library(frame.f_code):
            return frame.f_code, frame.f_lineno
        frame = frame.f_back
    return NOWHERE


_known: dict[CodeType, bool] = {}


def _in_library(code: CodeType) -> bool:
    known = _known.get(code)
    if known is None:
        known = _known[code] = code.co_filename.startswith(_LIBRARIES)
    return known


def _grouped_in_another_dtype(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The result of `_grouped_mm`, which on meta takes bf16 alone; on CUDA other dtypes run expert by expert (Blas.cpp)."""
    narrow = [torch.empty_like(t, dtype=torch.bfloat16) for t in args[:2]]
    out: torch.Tensor = _GROUPED(*narrow, *args[2:], **kwargs)
    return torch.empty_like(out, dtype=args[0].dtype)


def _dequantized_bytes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """What `gemm_4bit` holds inside on CUDA: the weight in the input's dtype and, if they are nested, its scales in fp32.

    Mirrors bitsandbytes 0.50 backends/cuda/ops.py; below about a thousand tokens it may choose a kernel that holds neither.
    """
    rows, columns = args[2]
    size: int = rows * columns * args[0].element_size()
    nested = kwargs.get("absmax_8bit", args[7] if len(args) > 7 else None)
    return size + (4 * nested.numel() if nested is not None else 0)


def quantization_state(model: nn.Module) -> Iterator[torch.Tensor]:
    """Tensors of bitsandbytes' quantization state, which are neither parameters nor buffers."""
    for module in model.modules():
        state = getattr(module, "quant_state", None)
        while state is not None:
            for name in ("absmax", "code", "offset"):
                tensor = getattr(state, name, None)
                if isinstance(tensor, torch.Tensor):
                    yield tensor
            state = state.state2
