"""Measured times of matrix products and collectives of a card, by shape and size: `speeds/<gpu>.json`.

`docs/measured_speeds.py` writes the files from published measurements; each names its source. Between the measured points times
are interpolated in the logarithms of sizes and times.
"""

import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from math import log2
from pathlib import Path
from statistics import median
from typing import Any

FOLDER = Path(__file__).parent / "speeds"
COLLECTIVES = ("all_gather", "reduce_scatter", "all_reduce", "alltoall")
_LARGE = 2048
"""A product with no smaller dimension is a large one."""


def _inside(size: float, axis: tuple[int, ...]) -> tuple[float, float]:
    """A size moved to the ends of an axis, and the binary logarithm of how far it lies above the last."""
    inside = min(max(size, axis[0]), axis[-1])
    return inside, log2(max(size, inside) / inside)


def _place(size: float, axis: tuple[int, ...]) -> tuple[int, float]:
    """Index of the point below a size and the share of the way to the next one, in logarithms."""
    index = min(bisect_right(axis, size), len(axis) - 1) - 1
    return index, log2(size / axis[index]) / log2(axis[index + 1] / axis[index])


@dataclass(slots=True, eq=False)
class ProductTimes:
    """Seconds of bf16 products `[rows, inner] @ [inner, columns]`.

    Attributes:
        axes: measured rows, columns and inner sizes, each rising.
        log_seconds: binary logarithms of seconds by row, column and inner size.
        large_rate: FLOP/s of the median large product; a multiply-add is 2.
    """

    axes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    log_seconds: tuple[tuple[tuple[float, ...], ...], ...]
    large_rate: float
    _known: dict[tuple[int, int, int], float] = field(default_factory=dict)
    _arrays: Any = None

    def seconds(self, rows: Any, columns: Any, inner: Any) -> Any:
        """Of one product, or of arrays of them.

        A size below the measured ones takes what the smallest does (it fills no more than a part of a tile); above them time
        grows with the size.
        """
        if isinstance(rows, int) and isinstance(columns, int) and isinstance(inner, int):
            key = (rows, columns, inner)
            if key not in self._known:
                self._known[key] = self._one(key)
            return self._known[key]
        return self._many((rows, columns, inner))

    def _one(self, sizes: tuple[int, int, int]) -> float:
        inside = [_inside(size, axis) for size, axis in zip(sizes, self.axes, strict=True)]
        total = sum(beyond for _, beyond in inside)
        (i, u), (j, v), (k, w) = (_place(size, axis) for (size, _), axis in zip(inside, self.axes, strict=True))
        for di, wu in ((0, 1 - u), (1, u)):
            for dj, wv in ((0, 1 - v), (1, v)):
                line = self.log_seconds[i + di][j + dj]
                total += wu * wv * ((1 - w) * line[k] + w * line[k + 1])
        return float(2.0**total)

    def _many(self, sizes: tuple[Any, Any, Any]) -> Any:
        import numpy as np

        if self._arrays is None:
            self._arrays = np.asarray(self.log_seconds), [np.log2(np.asarray(axis, dtype=float)) for axis in self.axes]
        table, axes = self._arrays
        total: Any = 0.0
        places = []
        for size, known in zip(sizes, axes, strict=True):
            asked = np.log2(np.asarray(size, dtype=float))
            inside = np.clip(asked, known[0], known[-1])
            total = total + np.maximum(asked - inside, 0.0)
            index = np.clip(np.searchsorted(known, inside, side="right"), 1, len(known) - 1) - 1
            places.append((index, (inside - known[index]) / (known[index + 1] - known[index])))
        (i, u), (j, v), (k, w) = places
        for di, wu in ((0, 1 - u), (1, u)):
            for dj, wv in ((0, 1 - v), (1, v)):
                total = total + wu * wv * ((1 - w) * table[i + di, j + dj, k] + w * table[i + di, j + dj, k + 1])
        return np.exp2(total)

    def share(self, rows: Any, columns: Any, inner: Any) -> Any:
        """The product's rate over that of the median large one."""
        return 2.0 * rows * columns * inner / self.seconds(rows, columns, inner) / self.large_rate


@dataclass(frozen=True, slots=True)
class CollectiveTimes:
    """Seconds of collectives between the cards of one machine.

    Attributes:
        ranks: numbers of cards, rising.
        message_bytes: of the whole message (what is gathered, scattered or summed), rising.
        log_seconds: binary logarithms of seconds by operation of COLLECTIVES, number of cards and message.
    """

    ranks: tuple[int, ...]
    message_bytes: tuple[int, ...]
    log_seconds: Mapping[str, tuple[tuple[float, ...], ...]]

    def seconds(self, operation: str, message_bytes: Any, ranks: int) -> Any:
        """Of one operation of COLLECTIVES, or an array of messages.

        Beyond what was measured a smaller message takes as long as the smallest, a larger one in proportion.
        """
        lines = self.log_seconds[operation]
        group, _ = _inside(ranks, self.ranks)
        i, u = _place(group, self.ranks)
        line = [(1 - u) * below + u * above for below, above in zip(lines[i], lines[i + 1], strict=True)]
        if isinstance(message_bytes, int | float):
            size, beyond = _inside(message_bytes, self.message_bytes)
            j, v = _place(size, self.message_bytes)
            return 2.0 ** ((1 - v) * line[j] + v * line[j + 1] + beyond)
        import numpy as np

        asked, known = np.log2(np.asarray(message_bytes, dtype=float)), np.log2(self.message_bytes)
        return np.exp2(np.interp(asked, known, line) + np.maximum(asked - known[-1], 0.0))


@dataclass(frozen=True, slots=True, eq=False)
class Speeds:
    """What was measured on one card, and where it was published."""

    gpu: str
    source: str
    products: ProductTimes
    collectives: CollectiveTimes | None


def measured() -> list[str]:
    """Ids of the GPUs that have a file."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


@cache
def bundled(gpu: str) -> Speeds | None:
    """The times that come with the package for a GPU id, or None."""
    path = FOLDER / f"{gpu}.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return Speeds(found["gpu"], found["source"], _products(found["products"]), _collectives(found.get("collectives")))


def _products(found: Mapping[str, Any]) -> ProductTimes:
    axes = (tuple(found["rows"]), tuple(found["columns"]), tuple(found["inner"]))
    logs = tuple(tuple(tuple(log2(t * 1e-6) for t in line) for line in sheet) for sheet in found["microseconds"])
    rates = [
        2.0 * m * n * k / 2.0 ** logs[x][y][z]
        for x, m in enumerate(axes[0])
        for y, n in enumerate(axes[1])
        for z, k in enumerate(axes[2])
        if min(m, n, k) >= _LARGE
    ]
    return ProductTimes(axes, logs, median(rates))


def _collectives(found: Mapping[str, Any] | None) -> CollectiveTimes | None:
    if found is None:
        return None
    times = {op: tuple(tuple(log2(t * 1e-6) for t in line) for line in lines) for op, lines in found["microseconds"].items()}
    return CollectiveTimes(tuple(found["ranks"]), tuple(found["message_bytes"]), times)
