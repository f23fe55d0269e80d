"""Step times of many cards at once: the sums of `step_time` over arrays.

Shapes: (optimizer, card, number of cards, micro-batch).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneplan.planner.models.network import Network
from tuneplan.planner.timing import collectives
from tuneplan.planner.timing.card_columns import CardColumns
from tuneplan.planner.timing.layout_time import Spread, spread
from tuneplan.planner.timing.optimizer_step import update_bytes
from tuneplan.planner.timing.roofline import device_seconds, host_seconds, started
from tuneplan.planner.timing.step_time import accumulation_seconds
from tuneplan.planner.timing.work import network_work, together
from tuneplan.planner.training.optimizers import Optimizer
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding

Floats = NDArray[np.float64]


class StepSeconds:
    """Seconds of steps of one network on many cards, under any sharding.

    The sums are those of `step_time.step_time`; a test holds one against the other.
    """

    def __init__(
        self,
        network: Network,
        settings: Settings,
        optimizers: Sequence[Optimizer],
        cards: CardColumns,
        experts_per_token: int = 0,
    ) -> None:
        """`settings`: micro-batches as an array; `network`: of one rank; `experts_per_token`: of a mixture."""
        self._network = network
        self._cards = cards
        self._experts = experts_per_token
        work = network_work(network, settings)
        self._ahead = work.forward
        whole = together((work.forward, work.recompute, work.backward))
        dtypes = {settings.autocast or settings.dtype} | {p.dtype for p in whole.products}
        self._rates, timed = cards.rates(dtypes, settings.kernels)
        self._timed = timed[:, None, None]
        self._micro: Any = device_seconds(whole, self._rates).total
        self._launches = (
            started(work.forward, self._rates) + started(work.recompute, self._rates),
            started(work.backward, self._rates),
        )
        master, clips = settings.precision == "master-weights", settings.max_grad_norm > 0
        updates = network.remembered(
            ("updates", tuple(optimizers), master, clips),
            lambda: [update_bytes(o, network.parameters, master, clips) for o in optimizers],
        )
        self._moved, self._paged, self._started = (
            np.array([[[[getattr(u, name)]]] for u in updates]) for name in ("moved", "paged", "launches")
        )

    def forwards(self, steps: NDArray[np.int64]) -> Floats:
        """Seconds of the forwards of a step. `steps`: see `under`."""
        every: Any = steps * device_seconds(self._ahead, self._rates).total
        found: Floats = np.where(self._timed, every, np.inf)
        return found

    def under(self, sharding: Sharding, steps: NDArray[np.int64]) -> Floats:
        """Seconds of a step; infinite for cards that cannot be timed.

        Args:
            sharding: over one card, or over numbers of them (count, 1).
            steps: micro-batches of an update (count, micro-batch).
        """
        counted: Any = steps
        cards: Any = self._cards  # which stand for the card and the machines
        more = spread(self._network, sharding, cards, cards, self._experts) if sharding.splits_model else Spread()
        computed: Any = (steps + more.filling) * self._micro + accumulation_seconds(self._network, self._rates, counted)
        shards = sharding.data_parallel if sharding.zero_stage else 1
        moved, paged, started = (-(-every // shards) for every in (self._moved, self._paged, self._started))
        sent = collectives.data_parallel_bytes(self._network, sharding.data_parallel, sharding.zero_stage, sharding.engine_used)
        nbytes: Any = steps * sent.each_micro_batch + sent.each_step
        link = self._cards.link(None, sharding.gpu_count)
        rate = link.rate(collectives.operation(sharding.zero_stage), sent.message_bytes, sharding.data_parallel)
        waited: Any = collectives.exposed_seconds(nbytes / rate, computed)
        waited = waited + steps * more.micro_batch_seconds + more.step_seconds
        ahead, behind = self._launches
        launched: Any = steps * ahead + started
        host = host_seconds(launched, counted * behind, self._rates)
        device = computed + moved / self._rates.memory + paged * self._cards.copy + waited
        seconds: Floats = np.where(self._timed, np.maximum(device, host), np.inf)
        return seconds
