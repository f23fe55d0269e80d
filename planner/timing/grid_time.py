"""Step times of many cards at once: the rates of cards as columns, and the sums of `step_time` over arrays.

Shapes: (optimizer, card, number of cards, micro-batch).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneplan.hardware_profiles.records import Gpu
from tuneplan.planner.models.network import Network
from tuneplan.planner.timing import collectives
from tuneplan.planner.timing.optimizer_step import update_bytes
from tuneplan.planner.timing.product_rates import ShapeShares, columns_of
from tuneplan.planner.timing.roofline import Rates, device_seconds, gpu_rates, host_seconds, started
from tuneplan.planner.timing.step_time import accumulation_seconds
from tuneplan.planner.timing.work import SMALL_OPS, network_work
from tuneplan.planner.training.optimizers import Optimizer
from tuneplan.planner.training.settings import BITSANDBYTES, Settings
from tuneplan.planner.training.sharding import Sharding

Floats = NDArray[np.float64]


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


class StepSeconds:
    """Seconds of steps of one network on many cards, under any sharding.

    The sums are those of `step_time.step_time`; a test holds one against the other.
    """

    def __init__(self, network: Network, settings: Settings, optimizers: Sequence[Optimizer], gpus: Sequence[Gpu | None]) -> None:
        """`settings`: micro-batches as an array; `gpus`: None for a bare amount of memory."""
        self._network = network
        work = network_work(network, settings)
        phases = (work.forward, work.recompute, work.backward)
        dtypes = {settings.autocast or settings.dtype} | {p.dtype for phase in phases for p in phase.products}
        self._rates, timed = card_rates(gpus, dtypes, settings.kernels)
        self._timed = timed[:, None, None]
        forward, recompute, backward = (device_seconds(phase, self._rates) for phase in phases)
        self._forward: Any = forward.total
        self._micro: Any = forward.total + recompute.total + backward.total
        self._launches = (
            started(work.forward, self._rates) + started(work.recompute, self._rates),
            started(work.backward, self._rates),
        )
        master, clips = settings.precision == "master-weights", settings.max_grad_norm > 0
        updates = [update_bytes(o, network.parameters, master, clips) for o in optimizers]
        self._moved, self._paged, self._started = (
            np.array([[[[getattr(u, name)]]] for u in updates]) for name in ("moved", "paged", "launches")
        )
        self._copy = np.array([[[collectives.copy_seconds(1.0, gpu) if gpu else 0.0]] for gpu in gpus])
        self._links = [collectives.gpu_link(gpu) if gpu else None for gpu in gpus]

    def under(self, sharding: Sharding, steps: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Seconds of a step, and of its forwards; infinite for cards that cannot be timed.

        Args:
            sharding: over one card, or over numbers of them (count, 1).
            steps: micro-batches of an update (count, micro-batch).
        """
        counted: Any = steps
        computed = steps * self._micro + accumulation_seconds(self._network, self._rates, counted)
        shards = sharding.data_parallel if sharding.zero_stage else 1
        moved, paged, started = (-(-every // shards) for every in (self._moved, self._paged, self._started))
        sent = collectives.data_parallel_bytes(self._network, sharding.data_parallel, sharding.zero_stage, sharding.engine_used)
        nbytes = steps * sent.each_micro_batch + sent.each_step
        rates = self._sent_per_second(sent, sharding)
        waited = collectives.exposed_seconds(nbytes / rates, computed)
        ahead, behind = self._launches
        launched: Any = steps * ahead + started
        host = host_seconds(launched, counted * behind, self._rates)
        device = computed + moved / self._rates.memory + paged * self._copy + waited
        seconds = np.where(self._timed, np.maximum(device, host), np.inf)
        return seconds, np.where(self._timed, steps * self._forward, np.inf)

    def _sent_per_second(self, sent: collectives.Traffic, sharding: Sharding) -> Any:
        """Rates of collectives: (card, count, 1), or (card, 1, 1) for one count."""
        ranks = np.atleast_1d(np.asarray(sharding.data_parallel)).ravel()
        kind = collectives.operation(sharding.zero_stage)
        return np.array([[[link.rate(kind, sent.message_bytes, int(r)) if link else 1.0] for r in ranks] for link in self._links])
