"""CUDA autocast for tensors that have no autocast key (meta) or another list of operators (CPU).

Mirrors aten/src/ATen/autocast_mode.h of torch 2.13 (the lists AT_FORALL_LOWER_PRECISION_FP and AT_FORALL_FP32, as far as Python
calls them) and `cached_cast` of autocast_mode.cpp: casts of fp32 leaves that need a gradient are kept until the outermost
autocast context ends.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from tuneplan.profiling.attention import card
from tuneplan.profiling.tracker import StorageTracker

_LOWER: set[Callable[..., Any]] = {
    torch.nn.functional.linear,
    torch.matmul,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.Tensor.__rmatmul__,
    torch.bmm,
    torch.Tensor.bmm,
    torch.mm,
    torch.Tensor.mm,
    torch.addmm,
    torch.baddbmm,
    torch.Tensor.baddbmm,
    torch.einsum,
    torch.nn.functional.conv1d,
    torch.nn.functional.conv2d,
    torch.nn.functional.conv3d,
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    torch.prelu,
    torch.nn.functional.scaled_dot_product_attention,
}
_FP32: set[Callable[..., Any]] = {
    torch.exp,
    torch.log,
    torch.log1p,
    torch.expm1,
    torch.reciprocal,
    torch.rsqrt,
    torch.Tensor.rsqrt,
    torch.Tensor.exp,
    torch.Tensor.log,
    torch.Tensor.reciprocal,
    torch.pow,
    torch.Tensor.pow,
    torch.Tensor.__pow__,
    torch.nn.functional.softplus,
    torch.nn.functional.layer_norm,
    torch.nn.functional.group_norm,
    torch.nn.functional.mse_loss,
    torch.nn.functional.nll_loss,
    torch.nn.functional.cosine_similarity,
    torch.nn.functional.binary_cross_entropy_with_logits,
}
_FP32_UNLESS_TOLD: set[Callable[..., Any]] = {torch.softmax, torch.Tensor.softmax, torch.nn.functional.softmax}
"""Of the list AT_FORALL_FP32_SET_OPT_DTYPE: they give fp32, unless the caller names a dtype."""
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


class CudaAutocast(TorchFunctionMode):
    """Casts what CUDA autocast would, while the model's forward runs: in the forward, and when checkpointing runs it again.

    Use it around whole steps. The casts of weights are dropped when a forward, or a recomputed region, ends.
    """

    def __init__(self, dtype: torch.dtype, tracker: StorageTracker) -> None:
        """Arguments: the lower precision, and who knows the phase."""
        super().__init__()
        self._dtype = dtype
        self._tracker = tracker
        self._cache: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._clear: Any = None

    def __enter__(self) -> "CudaAutocast":
        """Autocast's own bookkeeping says when the outermost context ends: the cache is cleared with torch's."""
        clear = self._clear = torch.clear_autocast_cache

        def both() -> None:
            clear()
            self._cache.clear()

        torch.clear_autocast_cache = both
        self._tracker.recomputing = self.again
        card.autocast = self._dtype
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Stop casting."""
        torch.clear_autocast_cache = self._clear
        card.autocast = None
        self._tracker.recomputing = nullcontext
        self._cache.clear()
        super().__exit__(*exception)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if self._tracker.in_forward:
            if func in _LOWER:
                args, given = self._to(args, self._dtype), {k: self._cast(v, self._dtype) for k, v in given.items()}
            elif func in _FP32:
                args, given = self._to(args, torch.float32), {k: self._cast(v, torch.float32) for k, v in given.items()}
            elif func in _FP32_UNLESS_TOLD and given.get("dtype") is None and len(args) < 3 and args[0].dtype in _FLOATS:
                given = {**given, "dtype": torch.float32}
        return func(*args, **given)

    @contextmanager
    def again(self) -> Iterator[None]:
        """The context of a recomputed region: `Tensor.backward`, as every function, is called with this mode set aside."""
        super().__enter__()
        try:
            yield
        finally:
            super().__exit__(None, None, None)

    @contextmanager
    def region(self) -> Iterator[None]:
        """The context of a forward: nothing is cast by it, but torch counts it, so that inner contexts do not end the cache."""
        with torch.autocast("cpu", enabled=False):
            yield

    def _to(self, args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
        return tuple(self._cast(a, dtype) for a in args)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype not in _FLOATS or value.dtype is dtype:
            return value
        if dtype is torch.float32 or not (value.is_leaf and value.requires_grad and value.dtype is torch.float32):
            return value.to(dtype)
        known = self._cache.get(id(value))
        if known is None:
            known = self._cache[id(value)] = (value, value.to(dtype))
        return known[1]
