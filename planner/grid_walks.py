"""Networks of a method, whole and split, for a large search: each built, walked and timed once for all sizes and cards."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneplan.planner.device_memory import checkpoint_bytes
from tuneplan.planner.errors import InputError
from tuneplan.planner.fragmentation import allowance
from tuneplan.planner.graph.tensor import BITS, OPTIMIZER_STATES, WEIGHTS
from tuneplan.planner.job import Job
from tuneplan.planner.lifetimes import least_saved
from tuneplan.planner.memory import Known, StepMemory, finds_gradients, step_memory
from tuneplan.planner.methods.formats import QUANTIZED
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.parallel.layout import Part, stage_parts
from tuneplan.planner.parallel.rank_network import check_model, in_flight, local_network, local_settings
from tuneplan.planner.parallel.shards import packed_bytes
from tuneplan.planner.timing.card_columns import CardColumns
from tuneplan.planner.timing.grid_time import StepSeconds
from tuneplan.planner.training.optimizers import Optimizers
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class RankBytes:
    """Memory of the rank that holds most, by (optimizer, number of cards, micro-batch).

    Attributes:
        allocated: at the peak, with the allowance for fragmentation.
        states: of the optimizer, on the device.
        host: of the optimizer, in host memory.
        fullest: which of the parts of a split model it is.
    """

    allocated: Ints
    states: Ints
    host: Ints
    fullest: Ints


class Walks:
    """The parts of a network that the ranks of a split have (one where the model is whole), walked and timed.

    Attributes:
        whole: the network on one GPU.
        saved: bytes of the weights in a checkpoint.
    """

    def __init__(self, job: Job, settings: Settings, whole: Network, parts: tuple[Part, ...], cards: CardColumns) -> None:
        """`settings`: of a rank; `parts`: of each pipeline stage."""
        self.whole = whole
        self.saved = checkpoint_bytes(whole)
        self._settings = settings
        self._optimizers = Optimizers(job.optimizers)
        first: dict[int, int] = {}
        for stage, part in enumerate(parts):
            first.setdefault(id(part), stage)  # of stages alike none holds more than the first, with more in flight
        self._parts = [(stage, parts[stage]) for stage in first.values()]
        self._cards = cards
        self._experts = getattr(job.spec, "top_k", 0)
        self._clocks: dict[int, StepSeconds] = {}

    def memory(self, sharding: Sharding, steps: Ints) -> RankBytes:
        """`steps`: micro-batches of an update (number of cards, micro-batch)."""
        shape = (len(self._optimizers.every), *steps.shape)
        found = RankBytes(*(np.zeros(shape, np.int64) for _ in range(4)))
        for on, taken in _kinds(sharding, steps > 1):
            settings = replace(self._settings, accumulating=on)
            every = [_peak(self._of_part(part, stage, settings, sharding, steps), shape) for stage, part in self._parts]
            fullest: Any = np.stack([one[0] for one in every]).argmax(0) if len(every) > 1 else 0
            peak, held, states, host = every[0]
            if len(every) > 1:
                peak, held, states, host = (np.choose(fullest, [one[index] for one in every]) for index in range(4))
            moving: Any = peak - held
            for own, new in (
                (found.allocated, peak + allowance(moving)),
                (found.states, states),
                (found.host, host),
                (found.fullest, fullest),
            ):
                np.copyto(own, new, where=taken)
        return found

    def _of_part(self, part: Part, stage: int, settings: Settings, sharding: Sharding, steps: Ints) -> StepMemory:
        counted: Any = steps
        walked = part.walked
        if walked.other is not None and walked.accumulating != finds_gradients(settings, sharding):
            walked = walked.other
        return step_memory(part.network, settings, self._optimizers, sharding, walked, in_flight(sharding, stage, counted))

    def seconds(self, sharding: Sharding, steps: Ints, fullest: Ints) -> Floats:
        """Seconds of a step by (optimizer, card, number of cards, micro-batch), on the fullest rank."""
        return self._on_fullest(fullest, lambda clock: clock.under(sharding, steps))

    def forwards(self, steps: Ints, fullest: Ints) -> Floats:
        """Those of its forwards."""
        return self._on_fullest(fullest, lambda clock: clock.forwards(steps))

    def _on_fullest(self, fullest: Ints, read: Callable[[StepSeconds], Floats]) -> Floats:
        if len(self._parts) == 1:
            return read(self._clock(0))
        found = np.zeros(())
        for index in np.unique(fullest):
            found = np.where(fullest[:, None] == index, read(self._clock(int(index))), found)
        return found

    def _clock(self, index: int) -> StepSeconds:
        """The times of a part, which are asked for where it is the fullest."""
        if index not in self._clocks:
            network = self._parts[index][1].network
            self._clocks[index] = StepSeconds(network, self._settings, self._optimizers.every, self._cards, self._experts)
        return self._clocks[index]


def _kinds(sharding: Sharding, accumulating: Bools) -> list[tuple[Any, Bools]]:
    """Values of `Settings.accumulating`, and which candidates have them; FSDP reads one walk, and takes them as they are."""
    if sharding.engine_used == "fsdp":
        return [(accumulating, np.ones(accumulating.shape, bool))]
    return [(on, accumulating == on) for on in (False, True) if (accumulating == on).any()]


def _peak(memory: StepMemory, shape: tuple[int, ...]) -> tuple[Ints, Ints, Ints, Ints]:
    """Bytes at the peak, what of them is weights and states, and bytes of states on the device and on the host."""
    peak: Ints | None = None
    held: Any = 0
    for phase in memory.phases.values():
        still = phase.levels[WEIGHTS] + phase.levels[OPTIMIZER_STATES]
        if peak is None:
            peak, held = _whole(phase.peak_bytes, shape), still
            continue
        higher = phase.peak_bytes > peak
        peak, held = np.where(higher, phase.peak_bytes, peak), np.where(higher, still, held)
    assert peak is not None
    states = memory.phases["optimizer_step"].levels[OPTIMIZER_STATES]
    return peak, _whole(held, shape), _whole(states, shape), _whole(memory.host.states, shape)


def _whole(value: Any, shape: tuple[int, ...]) -> Ints:
    """A figure as an array of a shape."""
    whole: Ints = np.broadcast_to(np.asarray(value, np.int64), shape)
    return whole


class Networks:
    """A method under one kind of checkpointing, for cards of one class: its networks under any split."""

    def __init__(
        self,
        job: Job,
        method: Method,
        settings: Settings,
        cards: CardColumns,
        known: dict[object, dict[Any, Any]],
        recomputing: "Networks | None" = None,
    ) -> None:
        """Builds nothing yet.

        Args:
            job: whose networks they are.
            method: the method.
            settings: micro-batches as an array.
            cards: of the class.
            known: what was found out about weights like these; see `Network.known`.
            recomputing: where no layer runs again, the networks of the same method whose layers do, if bounds are read off them.
        """
        self._job, self._method, self._settings, self._cards = job, method, settings, cards
        self._known = known
        self._narrows = any(getattr(part, "autocast_adapter_dtype", False) for part in method.parts)
        self._whole: dict[bool, Network] = {}
        self._local: dict[tuple[object, bool], tuple[Network, Known]] = {}
        self._walks: dict[tuple[Sharding, bool], Walks] = {}
        self._saved: dict[bool, int] = {}
        self._recomputing = recomputing

    def has(self, split: Sharding) -> bool:
        """Whether the model can be split so. Raises InputError where the method does not fit the model at all."""
        if not split.splits_model and self._recomputing is not None:  # with these it was found out
            return True
        whole = self._of_one_gpu(self._settings)
        if not split.splits_model:
            return True
        try:
            self._of_rank(split, self._settings, whole)
        except InputError:
            return False
        return True

    def least_saved(self, sharding: Sharding) -> int:
        """Bytes that every rank has of its activations at any micro-batch; 0 if none are known before the network is built.

        They are read off the network whose layers run again in the backward, if that was built.
        """
        if self._recomputing is None or sharding.splits_model:
            return 0
        return self._recomputing.saved(self._of(sharding).gathered_cast)

    def saved(self, cast: bool) -> int:
        """`least_saved` by `Settings.gathered_cast`; 0 where no such network was built."""
        if cast in self._whole and cast not in self._saved:
            self._saved[cast] = int(np.min(least_saved(self._whole[cast])))
        return self._saved.get(cast, 0)

    def least(self, split: Sharding) -> int:
        """Bytes that every rank has under the stages of sharding before the third, at any micro-batch; 0 if none are known.

        It holds the base model's layers whole: always, or, under FSDP's second stage, from the forward to the backward.
        """
        if split.splits_model:
            return 0
        if self._recomputing is not None:
            return self._recomputing.least(split)
        layers = [p for p in self._of_one_gpu(self._settings).parameters if "*" in p.name and not (p.adapter or p.buffer)]
        quantized = sum(packed_bytes(p)[0] * p.count for p in layers if p.storage in QUANTIZED)
        return quantized + sum(p.numel * BITS[p.storage] // 8 for p in layers if p.storage not in QUANTIZED)

    def walks(self, sharding: Sharding, split: Sharding) -> Walks:
        """The networks as ranks under a sharding run them: engines that keep fp32 weights themselves have their own."""
        settings = self._of(sharding)
        key = split, settings.gathered_cast
        if key not in self._walks:
            whole = self._of_one_gpu(settings)
            network, known = self._of_rank(split, settings, whole)
            parts = stage_parts(network, settings, split, known)
            for part in parts:
                part.network.known = self._known.setdefault(_of_weights(part.network), part.network.known)
            self._walks[key] = Walks(self._job, local_settings(settings, split), whole, parts, self._cards)
        return self._walks[key]

    def _of(self, sharding: Sharding) -> Settings:
        """What a rank runs under a sharding."""
        settings = sharding.settings(self._settings)
        return replace(settings, gathered_cast=settings.gathered_cast and self._narrows)

    def _of_one_gpu(self, settings: Settings) -> Network:
        if settings.gathered_cast not in self._whole:
            self._whole[settings.gathered_cast] = build(self._job.spec, self._method, settings)
        return self._whole[settings.gathered_cast]

    def _of_rank(self, split: Sharding, settings: Settings, whole: Network) -> tuple[Network, Known]:
        """What a rank computes of all pipeline stages, and its layers that were walked. Raises InputError."""
        check_model(self._job.spec, settings, split, whole)
        key = (split.tensor_parallel, split.context_parallel, split.expert_parallel), settings.gathered_cast
        if key not in self._local:
            self._local[key] = local_network(self._job.spec, self._method, settings, split, whole), {}
        return self._local[key]


def _of_weights(network: Network) -> object:
    """All that `Network.known` depends on: what the weights are, and which layers have them."""
    weights = tuple(
        (
            p.name,
            p.shape,
            BITS.get(p.storage, p.storage),
            p.stored_bytes,
            p.count,
            (p.trainable, p.adapter, p.buffer),
            (p.state_shape, p.state_beside),
        )
        for p in network.parameters
    )
    runs = tuple((run.count, run.layered, run.block.exit is None, run.block.parameters) for run in network.runs)
    return weights, runs
