"""Cards of a large search that run a step alike, as columns: memory, prices and rates, and the numbers of them in a job."""

from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneplan.planner.cost import SPOT, cheapest
from tuneplan.planner.device_memory import runtime_of, usable_bytes
from tuneplan.planner.graph import multiples
from tuneplan.planner.job import Job
from tuneplan.planner.target import Target
from tuneplan.planner.timing.card_columns import CardColumns
from tuneplan.planner.training.sharding import Sharding

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Cards:
    """Cards of one class, and all that does not depend on the method.

    Attributes:
        cards: the cards.
        counts: numbers of them that the batch can be split over.
        sizes: micro-batches.
        stages: of sharding, in the order in which they are tried.
        splits: how a model may be split, with the numbers of cards that take it.
        asked: whether a number of a card was asked for (card, count).
        usable: bytes of a card (card, 1, 1).
        usd: for an hour (card, count, 1), infinite where there is no price.
        spot: whether the machine may be taken away (card, count, 1).
        columns: rates and links.
    """

    def __init__(self, job: Job, cards: list[Target], today: date) -> None:
        self.cards = cards
        numbers = sorted({n for card in cards for n in card.counts})
        ranks = {n: [split.data_parallel for split in job.splits(n)] for n in numbers}
        self.counts = [n for n in numbers if any(job.micro_batches(rank) for rank in ranks[n])]
        every = {rank for n in self.counts for rank in ranks[n]}
        self.sizes: Ints = np.array(sorted({size for rank in every for size in job.micro_batches(rank)}), np.int64)
        multiples.remember(self.sizes)
        found = dict.fromkeys(stage for rank in sorted(every, reverse=True) for stage in job.stages(rank))
        self.stages = tuple(found) if not found or 0 in job.zero_stages or 0 not in found else (0, *[s for s in found if s])
        self.splits = [Split(job, self, split) for split in _splits(job, self.counts)]
        self.usable: Floats = np.array([usable_bytes(card.memory_bytes, job.safety_margin) for card in cards], float)[
            :, None, None
        ]
        prices = [[cheapest(card.offers, n, job.purchase, today) for n in self.counts] for card in cards]
        self.usd: Floats = np.array([[float(p.usd_per_hour) if p else np.inf for p in line] for line in prices])[..., None]
        self.spot = np.array([[p is not None and p.offer.purchase == SPOT for p in line] for line in prices])[..., None]
        self.asked = np.array([[n in card.counts for n in self.counts] for card in cards])
        self.columns = CardColumns([card.gpu for card in cards])
        self._runtimes: dict[bool, Floats] = {}

    def runtime(self, quantized: bool) -> Floats:
        """Bytes outside the allocator (card, count, 1)."""
        if quantized not in self._runtimes:
            found = [[runtime_of(card.gpu, n, quantized).total_bytes for n in self.counts] for card in self.cards]
            self._runtimes[quantized] = np.array(found, float)[..., None]
        return self._runtimes[quantized]


class Split:
    """One split of a model, on the numbers of cards that take it, which differ in their data-parallel ranks.

    Attributes:
        layout: the split, with as few data-parallel ranks as it can have.
        rows: the numbers of cards, by their place in `Cards.counts`.
        ranks: data-parallel ones (number of cards).
        tried: whether a stage is tried with a micro-batch on a number of cards (stage, number of cards, micro-batch).
        steps: micro-batches of an update (number of cards, micro-batch).
        candidates: for each kind of checkpointing and optimizer.
    """

    def __init__(self, job: Job, cards: Cards, layout: Sharding) -> None:
        self.layout = layout
        taken = {n: split.data_parallel for n in cards.counts for split in job.splits(n) if _alike(split) == layout}
        self.rows: Ints = np.array([place for place, n in enumerate(cards.counts) if n in taken], np.int64)
        self.ranks: Ints = np.array(list(taken.values()), np.int64)
        whole = np.array([np.isin(cards.sizes, job.micro_batches(rank)) for rank in taken.values()])
        tried = np.array([[stage in job.stages(rank) for rank in taken.values()] for stage in cards.stages])
        self.tried = tried[:, :, None] & whole
        self.steps: Ints = np.maximum(1, job.global_batch_size // (cards.sizes * self.ranks[:, None]))
        asked = np.array([sum(cards.counts[row] in card.counts for card in cards.cards) for row in self.rows])
        self.candidates = int((asked[:, None] * self.tried.sum(0)).sum())
        self._units = job.fsdp_units

    def places(self, stage: int) -> Ints:
        """Places in `rows` for which a stage, by its place, is tried."""
        found: Ints = np.flatnonzero(self.tried[stage].any(1))
        return found

    def goes_on(self, stage: int) -> NDArray[np.bool_]:
        """Whether another stage is tried after a stage, by its place, where that does not fit (number of cards)."""
        later: NDArray[np.bool_] = self.tried[stage + 1 :].any((0, 2))
        return later

    def sharding_of(self, places: Ints, stage: int) -> Sharding:
        """The layout on several numbers of cards, by their places in `rows`."""
        ranks: Any = self.ranks[places][:, None]
        ranks = ranks if len(places) > 1 or ranks.item() > 1 else 1
        return replace(self.layout, data_parallel=ranks, zero_stage=stage, units=self._units)

    def sharding(self, row: int, stage: int) -> Sharding:
        """The layout on one number of cards, by its place in `Cards.counts`."""
        ranks = int(self.ranks[list(self.rows).index(row)])
        return replace(self.layout, data_parallel=ranks, zero_stage=stage, units=self._units)


def _alike(split: Sharding) -> Sharding:
    """A split of a model, whatever the number of its data-parallel ranks."""
    return replace(split, data_parallel=split.expert_parallel)


def _splits(job: Job, counts: list[int]) -> list[Sharding]:
    """Every split, in the order in which those of one number of cards are tried."""
    found = {_alike(split) for n in counts for split in job.splits(n)}
    return sorted(found, key=lambda s: (s.tensor_parallel, s.pipeline_parallel, s.context_parallel, s.expert_parallel))
