"""Step times of many cards at once: the rates of cards as columns, and the sums of `step_time` over arrays.

Shapes: (card, optimizer, micro-batch).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneplan.hardware_profiles.records import Gpu
from tuneplan.planner.models.network import Network
from tuneplan.planner.timing import collectives
from tuneplan.planner.timing.optimizer_step import update_bytes
from tuneplan.planner.timing.roofline import Rates, device_seconds, gpu_rates, host_seconds
from tuneplan.planner.timing.step_time import accumulation_seconds
from tuneplan.planner.timing.work import NetworkWork
from tuneplan.planner.training.optimizers import Optimizer
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CardRates:
    """Rates of several cards.

    Attributes:
        gpus: the cards; None for a bare amount of memory.
        rates: each figure as a column.
        timed: whether a card can be timed.
    """

    gpus: tuple[Gpu | None, ...]
    rates: Rates
    timed: NDArray[np.bool_]


def card_rates(gpus: Sequence[Gpu | None], dtypes: frozenset[str]) -> CardRates:
    """The rates of cards; one that cannot be timed gets rates of 1, which are never read."""
    found = [gpu_rates(gpu, set(dtypes)) if gpu is not None else None for gpu in gpus]
    timed = np.array([rates is not None and not rates.reason for rates in found])

    def column(read: Any) -> Any:
        return np.array(
            [[[float(read(rates)) if ok and rates is not None else 1.0]] for rates, ok in zip(found, timed, strict=True)]
        )

    together = Rates(
        matmul={d: column(lambda r, d=d: r.matmul[d]) for d in dtypes},
        attention={d: column(lambda r, d=d: r.attention[d]) for d in dtypes},
        memory=column(lambda r: r.memory),
        dequantize=column(lambda r: r.dequantize),
        start_seconds=column(lambda r: r.start_seconds),
        kernel_seconds=column(lambda r: r.kernel_seconds),
        forward_launch=column(lambda r: r.forward_launch),
        backward_launch=column(lambda r: r.backward_launch),
    )
    return CardRates(tuple(gpus), together, timed)


def step_seconds(
    network: Network,
    settings: Settings,
    optimizers: Sequence[Optimizer],
    cards: CardRates,
    work: NetworkWork,
    sharding: Sharding,
    steps: Any,
) -> tuple[Floats, Floats]:
    """Seconds of a step, and of its forwards; infinite for cards that cannot be timed.

    The sums are those of `step_time.step_time`, which a test holds them against.

    Args:
        network: the model under its method.
        settings: of the run, micro-batches as an array.
        optimizers: to be timed.
        cards: to be timed.
        work: of the network.
        sharding: over the cards.
        steps: micro-batches of an update, by micro-batch size.
    """
    rates = cards.rates
    forward, recompute, backward = (device_seconds(phase, rates) for phase in (work.forward, work.recompute, work.backward))
    added = accumulation_seconds(network, rates, steps)
    computed: Any = steps * (forward.total + recompute.total + backward.total) + added
    ranks, stage = sharding.data_parallel, sharding.zero_stage
    master = settings.precision == "master-weights"
    updates = [update_bytes(o, network.parameters, master, settings.max_grad_norm > 0, ranks if stage else 1) for o in optimizers]
    streamed = np.array([[u.moved] for u in updates]) / rates.memory
    paged = np.array([[u.paged] for u in updates])
    launched = np.array([[u.launches] for u in updates])
    copy = np.array([[[collectives.copy_seconds(1.0, gpu) if gpu else 0.0]] for gpu in cards.gpus])
    link = np.array([[[collectives.gpu_link(gpu).bytes_per_second if gpu else 1.0]] for gpu in cards.gpus])
    sent = collectives.data_parallel_bytes(network, ranks, stage)
    nbytes = steps * sent.each_micro_batch + sent.each_step
    waited = collectives.exposed_seconds(nbytes / link, computed)
    started = work.forward.launches + work.recompute.launches
    host = host_seconds(steps * started + launched, steps * work.backward.launches, rates)
    seconds: Any = np.maximum(computed + streamed + paged * copy + waited, host)
    timed = cards.timed[:, None, None]
    ahead: Any = np.broadcast_to(steps * forward.total, seconds.shape)
    return np.where(timed, seconds, np.inf), np.where(timed, ahead, np.inf)
