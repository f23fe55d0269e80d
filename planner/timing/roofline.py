"""The roofline: an op takes the longer of its arithmetic and its memory traffic, at the rates that a card reaches.

Williams, Waterman and Patterson 2009, Roofline: An Insightful Visual Performance Model. What a matrix product reaches depends on
its shape (`product_rates`); other shares of the peak rates are those of `constants.py`. Not counted: overlap of kernels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneplan.hardware_profiles.calibrations import Calibration
from tuneplan.hardware_profiles.records import Gpu
from tuneplan.planner.timing import constants
from tuneplan.planner.timing.product_rates import ShapeColumns, ShapeShares, large_rate, shapes_of
from tuneplan.planner.timing.work import DEQUANTIZE_LAUNCHES, DEQUANTIZE_MOVED, SMALL_OPS, Product, Work
from tuneplan.planner.training.settings import BITSANDBYTES

_BF16_SINCE = (8, 0)
_HOPPER = (9, 0)
_HALF = ("bf16", "fp16")


@dataclass(frozen=True, slots=True)
class Rates:
    """What a card reaches.

    Attributes:
        matmul: FLOP/s of large matrix products, by dtype.
        attention: FLOP/s of fused attention kernels over `constants.ATTENTION_TOKENS` keys, by dtype.
        memory: bytes per second.
        dequantize: bytes per second of 4-bit dequantization, by the bytes that bitsandbytes moves.
        dequantize_start: device seconds of each dequantization beside them, above the gaps between bitsandbytes' launches.
        spared_launches: kernels that each dequantization starts less than bitsandbytes does.
        notes: what had to be assumed.
        reason: why nothing can be timed; empty if it can.
        shapes: the share of `matmul` that a product reaches by its shape; None where nothing like the card was measured.
        cached: share of the bytes of small ops that its cache spares, for each of `work.SMALL_OPS`.
        start_seconds: that a matrix product takes beside its FLOPs, where its shape is not known.
        kernel_seconds: device time between two dependent kernels.
        forward_launch: host time to start a kernel from Python.
        backward_launch: host time to start one from the autograd engine.
    """

    matmul: dict[str, float] = field(default_factory=dict)
    attention: dict[str, float] = field(default_factory=dict)
    memory: float = 0.0
    dequantize: float = 0.0
    dequantize_start: float = 0.0
    spared_launches: int = 0
    notes: tuple[str, ...] = ()
    reason: str = ""
    shapes: ShapeShares | ShapeColumns | None = None
    cached: tuple[float, ...] = ()
    start_seconds: float = constants.MATMUL_START_SECONDS.value
    kernel_seconds: float = constants.KERNEL_SECONDS.value
    forward_launch: float = constants.HOST_FORWARD_SECONDS.value
    backward_launch: float = constants.HOST_BACKWARD_SECONDS.value


@dataclass(frozen=True, slots=True)
class Seconds:
    """Device time of some work: products limited by arithmetic, all that memory limits, and gaps between kernels."""

    compute: float
    memory: float
    gaps: float

    @property
    def total(self) -> float:
        """All three."""
        return self.compute + self.memory + self.gaps


def gpu_rates(gpu: Gpu, dtypes: set[str], kernels: str = BITSANDBYTES) -> Rates:
    """The rates of a card for products of some dtypes: those fitted on it where it has a calibration.

    `kernels`: of `training.settings.KERNELS`. Those that were not measured on the card count as bitsandbytes', and a note says
    so.

    fp32 products run at the fp32 rate: torch leaves TF32 off for them by default
    (`torch.get_float32_matmul_precision() == "highest"`).
    """
    capability = gpu.compute_capability
    fused = constants.ATTENTION_HOPPER if capability is not None and capability >= _HOPPER else constants.ATTENTION
    fitted = gpu.calibration or Calibration(gpu.id, {})
    share = fitted.value("matmul_share", matmul_share(gpu))
    matmul: dict[str, float] = {}
    attention: dict[str, float] = {}
    notes: list[str] = []
    for dtype in sorted(dtypes):
        if dtype == "bf16" and capability is not None and capability < _BF16_SINCE:
            return Rates(reason=f"{gpu.name} has no bf16 arithmetic; use fp16 or fp32")
        peak = gpu.peak_flops(dtype) or _assumed_fp32(gpu, dtype, notes)
        if not peak:
            return Rates(reason=f"no {dtype} peak rate with a source is known for {gpu.name}; give one in a GPU file")
        matmul[dtype] = peak * share
        attention[dtype] = peak * fitted.value("attention_share", fused.value)
    bandwidth = gpu.bandwidth_bytes_per_second
    decoding, start, spared = _dequantization(gpu, fitted, kernels, notes)
    return Rates(
        matmul,
        attention,
        bandwidth * fitted.value("memory_share", constants.MEMORY.value),
        decoding,
        start,
        spared,
        tuple(notes),
        shapes=shapes_of(gpu),
        cached=_cached(gpu),
        start_seconds=fitted.value("matmul_start_seconds", constants.MATMUL_START_SECONDS.value),
        kernel_seconds=fitted.value("kernel_seconds", constants.KERNEL_SECONDS.value),
        forward_launch=fitted.value("host_forward_seconds", constants.HOST_FORWARD_SECONDS.value),
        backward_launch=fitted.value("host_backward_seconds", constants.HOST_BACKWARD_SECONDS.value),
    )


def matmul_share(gpu: Gpu) -> float:
    """Share of the peak rate that large products reach within a step, on a card without a calibration."""
    measured, peak = large_rate(gpu), gpu.peak_flops("bf16")
    if measured and peak:
        return measured / peak * constants.MATMUL_SHARE.value
    other = constants.CONSUMER_CEILING if gpu.kind == "consumer" else constants.DEFAULT_CEILING
    ceiling = constants.MATMUL_CEILINGS.get(gpu.id, other).value
    return ceiling * constants.MATMUL_TYPICAL.value * constants.MATMUL_SHARE.value


def _cached(gpu: Gpu) -> tuple[float, ...]:
    """`Rates.cached`: ops up to the largest size that is no more than half of the card's cache."""
    cache = constants.L2_BYTES.get(gpu.id)
    fitting = [] if cache is None else [size for size in SMALL_OPS if 2 * size <= cache.value]
    return tuple(constants.CACHED_READS.value * (size == max(fitting, default=0)) for size in SMALL_OPS)


def _dequantization(gpu: Gpu, fitted: Calibration, kernels: str, notes: list[str]) -> tuple[float, float, int]:
    """`Rates.dequantize`, `dequantize_start` and `spared_launches` of some kernels.

    Where the card's kernels were measured, `a + b * weights` seconds, fitted; else the share of the bandwidth of
    `constants.DEQUANTIZE`.
    """
    fits = fitted.kernels.dequantize_4bit if fitted.kernels else {}
    if kernels in fits:
        fit = fits[kernels]
        gaps = DEQUANTIZE_LAUNCHES * fitted.value("kernel_seconds", constants.KERNEL_SECONDS.value)
        spared = DEQUANTIZE_LAUNCHES - constants.DECODING_LAUNCHES[kernels]
        return DEQUANTIZE_MOVED / fit.seconds_per_weight, fit.launch_seconds - gaps, spared
    if kernels != BITSANDBYTES:
        notes.append(f"the kernels of {kernels} are not measured on {gpu.name} yet: their time counts as that of bitsandbytes'")
    share = fitted.value("dequantize_share", constants.DEQUANTIZE.value)
    return gpu.bandwidth_bytes_per_second * share, 0.0, 0


def _assumed_fp32(gpu: Gpu, dtype: str, notes: list[str]) -> float:
    """A stated assumption where a card's fp32 rate has no source; 0 where there is nothing to start from."""
    half = gpu.peak_flops("bf16") or gpu.peak_flops("fp16")
    if dtype != "fp32" or half is None:
        return 0.0
    share = constants.FP32_SHARE.get(gpu.compute_capability or (0, 0), constants.FP32_SHARE_UNKNOWN)
    notes.append(f"no fp32 rate with a source is known for {gpu.name}: 1/{1 / share:.0f} of its 16-bit rate is assumed")
    return half * share


def device_seconds(work: Work, rates: Rates) -> Seconds:
    """Time on the device of one stretch of work.

    A product of F FLOPs and B bytes takes max(F / rate of its shape, B / memory rate).
    """
    compute: Any = 0.0
    streamed: Any = work.moved
    for share, most in zip(rates.cached, SMALL_OPS, strict=False):
        if isinstance(share, float) and not share:
            continue
        streamed = streamed - share * work.small(most)
    memory: Any = streamed / rates.memory + work.dequantized / rates.dequantize
    memory = memory + work.dequantizations * rates.dequantize_start
    bandwidth: Any = rates.memory
    if not isinstance(bandwidth, float):
        compute, memory = _on_many_cards(work, rates, memory)
        return Seconds(compute, memory, work.launches * rates.kernel_seconds)
    for p in work.products:
        rate = rates.attention[p.dtype] * _attention_share(p) if p.attention else rates.matmul[p.dtype]
        arithmetic = p.flops / rate
        traffic = p.moved / rates.memory
        limited = arithmetic >= traffic
        if isinstance(rates.shapes, ShapeShares) and p.dims is not None and has_shape(p):
            arithmetic = arithmetic / rates.shapes.share(p.dims)
        else:
            arithmetic = arithmetic + rates.start_seconds
        longer = larger(arithmetic, traffic)
        compute = compute + longer * limited * p.count
        memory = memory + longer * (1 - limited) * p.count
    return Seconds(compute, memory, work.launches * rates.kernel_seconds)


def has_shape(product: Product) -> bool:
    """Whether a product's time is known by its shape: one product of 16-bit factors."""
    return product.dims is not None and not product.attention and product.dtype in _HALF


def _attention_share(product: Product) -> Any:
    """Rate of a fused attention over that for `constants.ATTENTION_TOKENS` keys: it rises as n / (n + half) with the keys n."""
    if product.dims is None:
        return 1.0
    half, known = constants.ATTENTION_HALF.value, constants.ATTENTION_TOKENS
    keys = product.dims[1]
    return keys / (keys + half) * ((known + half) / known)


def _on_many_cards(work: Work, rates: Rates, memory: Any) -> tuple[Any, Any]:
    """The sums over products of `device_seconds` for columns of cards, all products at once: the same, in the same order."""
    import numpy as np

    products = work.products
    if not products:
        return 0.0, memory
    flops, moved = (
        np.stack(np.broadcast_arrays(*figures)) for figures in ([p.flops for p in products], [p.moved for p in products])
    )
    alike = (-1, *(1,) * (np.ndim(rates.memory) - flops.ndim + 1), *flops.shape[1:])
    rate = np.stack([rates.attention[p.dtype] * _attention_share(p) if p.attention else rates.matmul[p.dtype] for p in products])
    arithmetic = flops.reshape(alike) / rate
    traffic = moved.reshape(alike) / rates.memory
    limited = arithmetic >= traffic
    shares, starts = _by_shape(products, rates, alike)
    longer = np.maximum(arithmetic / shares + starts, traffic)
    count = np.array([p.count for p in products]).reshape(-1, *(1,) * (longer.ndim - 1))
    first = np.broadcast_to(memory, longer.shape[1:])[None]
    return (longer * limited * count).sum(0), np.concatenate([first, longer * (1 - limited) * count]).sum(0)


def _by_shape(products: Sequence[Product], rates: Rates, alike: tuple[int, ...]) -> tuple[Any, Any]:
    """Shares of the rate and times to start of products on columns of cards: shape (product, card, 1, ...)."""
    import numpy as np

    width = len(alike) - 1
    cards = len(np.asarray(rates.memory))
    shares: Any = np.ones((len(products), cards, *[1] * (width - 1)))
    starts: Any = np.broadcast_to(rates.start_seconds, shares.shape[1:])
    starts = np.broadcast_to(starts, shares.shape).copy()
    known = [index for index, p in enumerate(products) if has_shape(p)]
    if not isinstance(rates.shapes, ShapeColumns) or not known:
        return shares, starts
    every = rates.shapes.of([p.dims for p in products if p.dims is not None and has_shape(p)])  # each (card, ...)
    most = max(one.ndim for one in every)
    found = np.stack(np.broadcast_arrays(*[one.reshape(cards, *(1,) * (most - one.ndim), *one.shape[1:]) for one in every]))
    found = found.reshape(*found.shape[:2], *(1,) * (width + 1 - found.ndim), *found.shape[2:])
    shares = np.ones((len(products), cards, *found.shape[2:]))
    shares[known] = found
    measured = rates.shapes.of_card >= 0
    starts[np.ix_(np.array(known), np.flatnonzero(measured))] = 0.0
    return shares, starts


def started(work: Work, rates: Rates) -> Any:
    """Kernels that some work starts, with those for dequantization that the rates are of."""
    return work.launches - work.dequantizations * rates.spared_launches


def host_seconds(forward_launches: int, backward_launches: int, rates: Rates) -> float:
    """Time that the host needs to start kernels, from Python or from the autograd engine: a step cannot be shorter."""
    return forward_launches * rates.forward_launch + backward_launches * rates.backward_launch


def larger(a: Any, b: Any) -> float:
    """The larger of two numbers, or elementwise of arrays."""
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return max(a, b)
    import numpy as np

    result: Any = np.maximum(a, b)
    chosen: float = result
    return chosen
