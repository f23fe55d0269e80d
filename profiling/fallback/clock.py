"""Seconds of a traced step on a card: the planner's roofline over the operators that the real code ran.

As `planner/timing/step_time.py` for one card, with what the trace sees instead of the ledger's ops. Not counted: what that does
not count either, and bytes inside fused kernels but those of attention.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tuneplan.hardware_profiles.records import Gpu
from tuneplan.planner.timing.roofline import device_seconds, gpu_rates, host_seconds
from tuneplan.planner.timing.work import DEQUANTIZE_LAUNCHES, DEQUANTIZE_MOVED, Product, Work
from tuneplan.profiling.fallback.recording import RECOMPUTE, Operator

FORWARD, BACKWARD, UPDATE = "forward", "backward", "optimizer_step"
_PARTS = {FORWARD: (FORWARD,), BACKWARD: (RECOMPUTE, BACKWARD), UPDATE: (UPDATE,)}


@dataclass(frozen=True, slots=True)
class TracedTime:
    """One optimizer step.

    Attributes:
        seconds: None where the card's rates are not known.
        tokens_per_second: of the step.
        flops: matrix-multiply FLOPs, recomputation included.
        moved_bytes: read and written in device memory.
        reason: why there is no time.
    """

    seconds: float | None
    tokens_per_second: float | None = None
    flops: int = 0
    moved_bytes: int = 0
    reason: str = ""


def step_time(operators: Sequence[Operator], gpu: Gpu, tokens: int, recorded_steps: int, steps: int) -> TracedTime:
    """Time a step.

    Args:
        operators: of the traced step.
        gpu: the card.
        tokens: of one micro-batch.
        recorded_steps: micro-batches that the trace ran before the update.
        steps: micro-batches of the step that is asked for.
    """
    phases = {name: work_of((op, 1) for op in operators if op.phase in parts) for name, parts in _PARTS.items()}
    rates = gpu_rates(gpu, {p.dtype for work in phases.values() for p in work.products})
    if rates.reason:
        return TracedTime(None, reason=rates.reason)
    share = steps / recorded_steps
    forward, backward, update = phases[FORWARD], phases[BACKWARD], phases[UPDATE]
    device = share * (device_seconds(forward, rates).total + device_seconds(backward, rates).total)
    device += device_seconds(update, rates).total
    host = share * host_seconds(forward.launches, backward.launches, rates) + host_seconds(update.launches, 0, rates)
    seconds = max(device, host)
    flops = int(share * (forward.flops + backward.flops))
    moved = int(share * (forward.total_moved + backward.total_moved) + update.total_moved)
    return TracedTime(seconds, steps * tokens / seconds, flops, moved)


def work_of(operators: Iterable[tuple[Operator, int]]) -> Work:
    """Operators as the roofline takes them, each with the number of times that it runs."""
    work = Work()
    for op, count in operators:
        if op.kind == "dequantize":
            work.dequantized += int(op.moved * DEQUANTIZE_MOVED) * count
            work.launches += DEQUANTIZE_LAUNCHES * count
            continue
        work.launches += count
        if op.kind == "other":
            work.stream(op.moved, count)
        else:
            work.products.append(Product(op.flops, op.moved, op.dtype, op.kind == "attention", count))
    return work
