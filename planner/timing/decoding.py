"""Seconds of one decoded token: what the device needs, and what plain transformers needs to start its kernels."""

from dataclasses import dataclass

from tuneplan.hardware_profiles.records import Gpu
from tuneplan.planner.timing.roofline import device_seconds, gpu_rates, host_seconds
from tuneplan.planner.timing.work import Work


@dataclass(frozen=True, slots=True)
class Decoding:
    """One token through the model, batch 1, on one card.

    Attributes:
        device_seconds: of the kernels and the gaps between them, as they run when they are captured in a CUDA graph.
        eager_seconds: where Python starts each kernel, as plain transformers does; never less.
    """

    device_seconds: float
    eager_seconds: float


def decoding(work: Work, gpu: Gpu, dtype: str) -> Decoding | None:
    """Time of the work of one token; None where the card's rates are not known.

    Modelled: the roofline of the training step. Not counted: sampling, fused kernels of a serving engine.
    """
    rates = gpu_rates(gpu, {dtype} | {p.dtype for p in work.products})
    if rates.reason:
        return None
    device = device_seconds(work, rates).total
    return Decoding(device, max(device, host_seconds(work.launches, 0, rates)))
