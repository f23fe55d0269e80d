"""Cards of a large search as columns: rates and links of all of them, found once for all networks that are timed on them.

Shapes: (card, 1, 1) or (card, number of cards, 1 or micro-batch).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneplan.hardware_profiles.records import Gpu
from tuneplan.planner.host_memory import GPUS_OF_A_NODE
from tuneplan.planner.timing import collectives, constants
from tuneplan.planner.timing.collectives import Link
from tuneplan.planner.timing.product_rates import ShapeShares, columns_of
from tuneplan.planner.timing.roofline import Rates, gpu_rates
from tuneplan.planner.timing.work import SMALL_OPS
from tuneplan.planner.training.settings import BITSANDBYTES


class CardColumns:
    """Rates and links of cards.

    Attributes:
        copy: seconds to copy a byte between host and device.
    """

    def __init__(self, gpus: Sequence[Gpu | None]) -> None:
        """`gpus`: None for a bare amount of memory."""
        self._gpus = gpus
        self._rates: dict[tuple[frozenset[str], str], tuple[Rates, NDArray[np.bool_]]] = {}
        self._links = Links([collectives.gpu_link(gpu) if gpu else Link(1.0, "") for gpu in gpus])
        self.copy: Any = np.array([[[collectives.copy_seconds(1.0, gpu) if gpu else 0.0]] for gpu in gpus])

    def rates(self, dtypes: set[str], kernels: str = BITSANDBYTES) -> tuple[Rates, NDArray[np.bool_]]:
        """Rates, and which cards can be timed; the others get rates of 1, which nobody reads."""
        key = frozenset(dtypes), kernels
        if key not in self._rates:
            self._rates[key] = card_rates(self._gpus, dtypes, kernels)
        return self._rates[key]

    def link(self, _: object, ranks: Any) -> "LinkColumns":
        """As `layout_time.Machines.link`, of all cards; groups have one number of ranks, or several (number of cards, 1)."""
        return LinkColumns(self._links, np.asarray(ranks).reshape(-1))


class Links:
    """Links within a machine, and between machines that are joined by the network that is assumed."""

    def __init__(self, near: Sequence[Link]) -> None:
        """`near`: of each card."""
        self.near: Any = np.array([link.bytes_per_second for link in near])[:, None]
        self.far: Any = np.minimum(self.near, constants.NETWORK.value)
        self.slower = self.near < constants.NETWORK.value  # such a link is the slowest between machines too
        times = [link.times for link in near]
        self._different = {id(one): one for one in times if one is not None}
        self._members = {key: np.array([one is not None and id(one) == key for one in times]) for key in self._different}
        self._scale = np.array([link.scale for link in near])
        self._known: dict[tuple[str, float, int], Any] = {}

    def rate(self, operation: str, message_bytes: Any, ranks: int) -> Any:
        """`Link.rate` of all links within a machine (card, 1 or micro-batch)."""
        alone = isinstance(message_bytes, int | float)
        if ranks < 2 or (alone and message_bytes <= 0):
            return self.near
        if not alone:
            return self._measured(operation, message_bytes, ranks)
        key = (operation, message_bytes, ranks)
        if key not in self._known:
            self._known[key] = self._measured(operation, message_bytes, ranks)
        return self._known[key]

    def _measured(self, operation: str, message_bytes: Any, ranks: int) -> Any:
        found = np.broadcast_to(self.near, (len(self.near), np.size(message_bytes))).copy()
        for key, times in self._different.items():
            of = self._members[key]
            found[of] = Link(1.0, "", times).rate(operation, message_bytes, ranks) * self._scale[of][:, None]
        return found


class LinkColumns:
    """What groups of ranks talk over on each card; stands for a `collectives.Link`.

    Attributes:
        note: see `Link`.
    """

    note = ""

    def __init__(self, links: Links, group: NDArray[np.int64]) -> None:
        """`group`: ranks that lie next to each other, one number of them or several."""
        self._links = links
        self._within = group <= GPUS_OF_A_NODE

    @property
    def bytes_per_second(self) -> Any:
        """For large messages (card, number of cards, 1)."""
        return np.where(self._within, self._links.near, self._links.far)[..., None]

    def rate(self, operation: str, message_bytes: Any, ranks: Any) -> Any:
        """See `Link.rate`; `ranks` of one operation may be as many as there are groups, or one for all."""
        counts = np.asarray(ranks).reshape(-1)
        counts = np.broadcast_to(counts, (max(len(counts), len(self._within)),))
        inside = np.stack([self._links.rate(operation, message_bytes, int(count)) for count in counts], 1)
        near = (self._within | self._links.slower)[..., None]
        return np.where(near, inside, self._links.far[..., None])


def card_rates(gpus: Sequence[Gpu | None], dtypes: set[str], kernels: str = BITSANDBYTES) -> tuple[Rates, NDArray[np.bool_]]:
    """Rates of cards as columns (card, 1, 1), and which cards can be timed; the others get rates of 1, which nobody reads."""
    found = [gpu_rates(gpu, dtypes, kernels) if gpu is not None else None for gpu in gpus]
    timed = np.array([rates is not None and not rates.reason for rates in found])

    def column(read: Callable[[Rates], float]) -> Any:
        return np.array([[[read(rates) if rates is not None and not rates.reason else 1.0]] for rates in found])

    together = Rates(
        matmul={dtype: column(partial(_product, dtype)) for dtype in dtypes},
        attention={dtype: column(partial(_attention, dtype)) for dtype in dtypes},
        memory=column(lambda r: r.memory),
        dequantize=column(lambda r: r.dequantize),
        dequantize_start=column(lambda r: r.dequantize_start),
        spared_launches=column(lambda r: r.spared_launches),
        shapes=columns_of(
            [rates.shapes if rates is not None and isinstance(rates.shapes, ShapeShares) else None for rates in found]
        ),
        cached=tuple(column(partial(_cached, index)) for index in range(len(SMALL_OPS))),
        start_seconds=column(lambda r: r.start_seconds),
        kernel_seconds=column(lambda r: r.kernel_seconds),
        forward_launch=column(lambda r: r.forward_launch),
        backward_launch=column(lambda r: r.backward_launch),
    )
    return together, timed


def _product(dtype: str, rates: Rates) -> float:
    return rates.matmul[dtype]


def _cached(index: int, rates: Rates) -> float:
    return rates.cached[index]


def _attention(dtype: str, rates: Rates) -> float:
    return rates.attention[dtype]
