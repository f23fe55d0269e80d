"""What matrix products reach by their shape, from times that were measured product by product.

A small number of rows, or a LoRA's rank as a dimension, does not reach the rate of large products (NVIDIA, Matrix Multiplication
Background User's Guide: tiles and waves). A card that was not measured takes the shares, though not the rate, of the measured one
whose arithmetic per byte of memory traffic is nearest to its own. Assumed: the three layouts of a linear layer's products
(forward, gradient of the input, gradient of the weight) are equally fast; the times are of the forward's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from math import log
from typing import TYPE_CHECKING, Any

from tuneplan.hardware_profiles import speed_tables
from tuneplan.hardware_profiles.records import Gpu
from tuneplan.hardware_profiles.speed_tables import ProductTimes
from tuneplan.planner.graph.tape import Dims

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tuneplan.hardware_profiles.kernel_speeds import GemmCurve

MOST_SHAPES = 4096
"""So many shapes are remembered for many cards."""
LARGE = 8192
"""Columns and summed dimension of the layer whose rate over its rows a calibration may hold."""


@dataclass(frozen=True, slots=True)
class ShapeShares:
    """Share of a card's rate for large products that a product reaches by its shape.

    Attributes:
        times: measured on the card, or on one like it.
        curve: rates over rows that were measured on this very card, or None.
    """

    times: ProductTimes
    curve: "GemmCurve | None" = None

    def share(self, dims: Dims) -> Any:
        """Of one product, or of arrays of them."""
        share = self.times.share(*dims)
        if self.curve is None:
            return share
        return share * _interpolated(self.curve, dims[0]) / self.times.share(dims[0], LARGE, LARGE)


@dataclass(frozen=True, slots=True)
class ShapeColumns:
    """`ShapeShares` of many cards.

    Attributes:
        different: each once.
        of_card: which of them a card has; -1 for none.
        known: shares that were asked for, by dimensions.
    """

    different: tuple[ShapeShares, ...]
    of_card: "NDArray[np.int64]"
    known: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False, compare=False)

    def of(self, every: Sequence[Dims]) -> list[Any]:
        """Of several products, of numbers or of arrays: shape (card,) or (card, size) each; found once."""
        keys = [tuple([size if isinstance(size, int) else size.tobytes() for size in dims]) for dims in every]
        if len(self.known) + len(keys) > MOST_SHAPES:
            self.known.clear()
        self._find({key: dims for key, dims in zip(keys, every, strict=True) if key not in self.known})
        return [self.known[key] for key in keys]

    def _find(self, new: dict[tuple[Any, ...], Dims]) -> None:
        """Those of as many sizes all at once."""
        import numpy as np

        groups: dict[tuple[int, ...], list[tuple[Any, ...]]] = {}
        for key, dims in new.items():
            groups.setdefault(np.broadcast_shapes(*[np.shape(size) for size in dims]), []).append(key)
        for shape, keys in groups.items():
            sizes = [np.stack([np.broadcast_to(new[key][axis], shape) for key in keys]) for axis in range(3)]
            self.known.update(zip(keys, np.moveaxis(self.share(sizes), 1, 0), strict=True))

    def share(self, dims: Sequence[Any]) -> Any:
        """Shape (card, product, ...) for dims of shape (product, ...); 1 for cards without."""
        import numpy as np

        found = [shares.share((dims[0], dims[1], dims[2])) for shares in self.different]
        return np.stack([*found, np.ones_like(found[0])])[self.of_card]


def columns_of(shapes: Sequence[ShapeShares | None]) -> ShapeColumns | None:
    """The shares of cards as columns; None if no card has any."""
    import numpy as np

    different = tuple(dict.fromkeys(s for s in shapes if s is not None))
    places = [-1 if s is None else different.index(s) for s in shapes]
    return ShapeColumns(different, np.array(places)) if different else None


def shapes_of(gpu: Gpu) -> ShapeShares | None:
    """The shares of a card; None where no card like it was measured."""
    times = _times_of(gpu)
    kernels = gpu.calibration.kernels if gpu.calibration else None
    return None if times is None else ShapeShares(times, kernels.gemm if kernels else None)


def large_rate(gpu: Gpu) -> float | None:
    """FLOP/s of the median large bf16 product that was measured on the card; None if none was."""
    speeds = speed_tables.bundled(gpu.id)
    return None if speeds is None else speeds.products.large_rate


def _times_of(gpu: Gpu) -> ProductTimes | None:
    speeds = speed_tables.bundled(gpu.id)
    if speeds is not None:
        return speeds.products
    intensity = _intensity(gpu)
    if gpu.vendor != "nvidia" or not intensity:
        return None
    nearest = min(_measured().items(), key=lambda item: abs(log(item[1] / intensity)))[0]
    like = speed_tables.bundled(nearest)
    return None if like is None else like.products


def _intensity(gpu: Gpu) -> float:
    """16-bit FLOPs per byte of memory traffic at the peak rates."""
    peak = gpu.peak_flops("bf16") or gpu.peak_flops("fp16") or 0
    return peak / gpu.bandwidth_bytes_per_second


@cache
def _measured() -> dict[str, float]:
    """Arithmetic per byte of the measured cards, by id."""
    from tuneplan.hardware_profiles.loader import find_gpu

    return {name: _intensity(find_gpu(name)) for name in speed_tables.measured()}


def _interpolated(curve: "GemmCurve", rows: Any) -> Any:
    """The curve's rate at some rows over its highest."""
    import numpy as np

    rates = np.interp(np.log(rows), np.log(curve.tokens), curve.flops_per_second) / max(curve.flops_per_second)
    return float(rates) if isinstance(rows, int) else rates
