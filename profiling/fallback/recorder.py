"""One step of the real code, traced and written down in full."""

import gc
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from tuneplan.planner.graph.tensor import GRADIENTS
from tuneplan.profiling import attention
from tuneplan.profiling.fallback.recording import RECOMPUTE, STEP, Operator, Recording, Storage
from tuneplan.profiling.fallback.weights import layers, weights
from tuneplan.profiling.subject import Subject
from tuneplan.profiling.trace import run_once
from tuneplan.profiling.tracker import StorageTracker

_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_GROUPED = ("_grouped_mm", "_scaled_grouped_mm")


class Recorder(StorageTracker):
    """A tracker that also counts what operators compute and move."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.block_bytes = 1
        self.operators: list[Operator] = []
        self.received: list[bool] = []

    def __enter__(self) -> "Recorder":
        """Start to record, the fused kernels' products included."""
        attention.products.hear = self._hear
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Stop recording."""
        attention.products.hear = None
        super().__exit__(*exception)

    def classify(self, tensors: Iterable[torch.Tensor | None], category: int) -> None:
        """As the tracker does; which parameters got a gradient is remembered."""
        found = list(tensors)
        if category == GRADIENTS:
            self.received = [tensor is not None for tensor in found]
        super().classify(found, category)

    @property
    def _part(self) -> str:
        return RECOMPUTE if self.phase == "backward" and self.in_forward else self.phase

    def _hear(self, flops: int, moved: int, dtype: str) -> None:
        self.operators.append(Operator(self._part, "attention", _dtype(dtype), flops, moved))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        operator = _operator(self._part, func, args, kwargs or {}, out)
        if operator is not None:
            self.operators.append(operator)
            if func.__name__.startswith("gemm_4bit"):
                rows, columns = args[2]
                self.operators.append(Operator(self._part, "dequantize", "", 0, int(rows) * int(columns)))
        return out


def record(subject: Subject, batch: int, length: int, steps: int = 2) -> Recording:
    """Trace a subject's step at another batch and length.

    The garbage collector is off, so that what a cycle holds dies where no collection comes by chance.

    Args:
        subject: what to run.
        batch: sequences.
        length: tokens of each.
        steps: updates; from the second on the optimizer's states are there.

    Raises:
        InputError: transformers refuses the config, or PEFT the method.
        CannotRunError: the step does not run on the meta device.
    """
    settings = replace(subject.settings, micro_batch_size=batch, seq_len=length)
    made: list[Recorder] = []

    def make(*args: Any, **kwargs: Any) -> Recorder:
        made.append(Recorder(*args, **kwargs))
        return made[-1]

    attention.register()
    attention.card.compute_capability = settings.compute_capability
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        run = run_once(replace(subject, settings=settings), "meta", make, steps)
    finally:
        if collecting:
            gc.enable()
    index: dict[int, int] = {}
    log: list[int] = []
    born = []
    for birth, allocation in run.step.timeline.log:
        if birth:
            log.append(index.setdefault(id(allocation), len(index)))
            born.append(allocation)
        else:
            log.append(-1 - index[id(allocation)])
    return Recording(
        tuple(Storage(a.phase, a.op, a.module, a.category) for a in born),
        tuple(a.size_bytes for a in born),
        tuple(log),
        tuple(made[-1].phases),
        tuple(_last_step(made[-1])),
        run.counts,
        run.notes,
        tuple(weights(run.built, made[-1].received)),
        tuple(layers(run.built.model)),
    )


def _last_step(recorder: Recorder) -> list[Operator]:
    """Operators since the last update but one ended; `zero_grad` of the last step is left out."""
    done = recorder.operators
    while done and done[-1].phase not in STEP:
        done = done[:-1]
    start = len(done)
    while start and done[start - 1].phase in STEP:
        start -= 1
    updates = [i for i in range(start, len(done) - 1) if done[i].phase == "optimizer_step" and done[i + 1].phase == "forward"]
    return done[updates[-1] + 1 if updates else start :]


def _operator(phase: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Operator | None:
    """What an operator does; None for one that only looks at tensors or makes empty ones."""
    name = func.__name__
    if getattr(func, "is_view", False) or name.startswith(("empty", "new_empty", "detach", "_local_scalar", "alias")):
        return None
    read = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    written = [leaf for leaf in tree_iter(out) if isinstance(leaf, torch.Tensor)]
    moved = sum(t.numel() * t.element_size() for t in _distinct([*read, *written]))
    if "dequantize" in name and written:
        return Operator(phase, "dequantize", "", 0, written[0].numel())
    flops = _flops(func, name, args, kwargs, out)
    if flops:
        return Operator(phase, "product", _dtype(str(written[0].dtype)) if written else "bf16", flops, moved)
    return Operator(phase, "other", "", 0, moved) if moved else None


def _distinct(tensors: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Each tensor once: what is written in place is read there too."""
    seen: set[int] = set()
    for tensor in tensors:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor


def _flops(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """FLOPs of matrix products: those that torch's counter knows, grouped products, and bitsandbytes' 4-bit and 8-bit ones."""
    counter = flop_registry.get(func._overloadpacket)
    if counter is not None:
        return int(counter(*args, **kwargs, out_val=out))
    if name.startswith("gemm_4bit"):
        rows, columns = args[2]
        return int(2 * (args[0].numel() // args[0].shape[-1]) * rows * columns)
    if name.startswith(("int8_scaled_mm", "int8_linear_matmul", "int8_mixed_scaled_mm")):
        return 2 * int(args[0].numel()) * int(args[1].shape[0])
    if name.startswith(_GROUPED):
        a, b = args[0], args[1]
        return int(2 * a.shape[1] * b.numel() if a.dim() == 3 and b.dim() == 2 else 2 * a.numel() * b.shape[-1])
    return 0


def _dtype(name: str) -> str:
    return next((short for dtype, short in _DTYPES.items() if str(dtype) == name), "bf16")
