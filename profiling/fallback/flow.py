"""A traced program as the planner reads it: walks, work and a replay at any batch and length of its domain.

The program is of two micro-batches and an update: the first backward finds no gradients, the second adds to them. Optimizers,
clipping and what ranks split are the planner's own, on the weights that the trace names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tuneplan.planner.graph.meter import Meter, Segment
from tuneplan.planner.graph.tensor import CATEGORIES, GRADIENTS, WEIGHTS, Storage
from tuneplan.planner.models.network import Network
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.parallel.step import NOTHING, Piece, Walked
from tuneplan.planner.replay import Replay
from tuneplan.planner.timing.work import NetworkWork, Work
from tuneplan.planner.training.optimizers import Optimizer
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling.fallback.clock import work_of
from tuneplan.profiling.fallback.codec import weights_of
from tuneplan.profiling.fallback.cuts import Cuts, Stretch, cut
from tuneplan.profiling.fallback.forms import Events, Ints, values
from tuneplan.profiling.fallback.networks import Skeleton, skeleton
from tuneplan.profiling.fallback.program import Domain, described
from tuneplan.profiling.fallback.recording import RECOMPUTE, Operator

_BATCH_START = "batch"


@dataclass(frozen=True, slots=True)
class Flow:
    """A program of the cache, ready to be evaluated.

    Attributes:
        domain: where it holds.
        basis: which traces it comes from, in words.
        events: births and deaths.
        cuts: its layers.
        skeleton: its network.
        operators: of one micro-batch, operators alike once: phase, kind and dtype, rows of the forms of FLOPs and bytes, count.
        notes: what was built otherwise than asked for.
    """

    domain: Domain
    basis: str
    events: Events
    cuts: Cuts
    skeleton: Skeleton
    operators: list[tuple[Operator, int, int, int]]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Flow":
        """From a program as `codec.encode` gives it.

        Raises ValueError, KeyError, IndexError or TypeError where its parts do not belong together.
        """
        events = Events.of(content)
        layers = [str(path) for path in content["layers"]]
        cuts = cut(events, [(str(name), int(start)) for name, start in content["phases"]], layers)
        batches, lengths = content["domain"]
        domain = Domain((int(batches[0]), int(batches[1])), (int(lengths[0]), int(lengths[1])))
        points = [(int(batch), int(length)) for batch, length in content["points"]]
        existing = int(events.sizes(*points[0])[events.existing].sum())
        return cls(
            domain,
            described(domain, points, content["residual"]),
            events,
            cuts,
            skeleton(list(weights_of(content)), layers, cuts, existing),
            _grouped(content, len(events.form)),
            tuple(map(str, content["notes"])),
        )

    def at(self, batch: int, length: int, spec: ModelSpec) -> Network:
        """The network at a point."""
        step = FlowStep(self, batch, length)
        notes = {"attention_kernel": "as traced"}
        runs = [*self.skeleton.runs[:-1], replace(self.skeleton.runs[-1])]
        runs[-1].block = replace(runs[-1].block, stays=step.stays)
        return Network(runs, self.skeleton.parameters, notes, spec=spec, recorded=step)


class FlowStep:
    """A program at a batch and a length; see `planner.models.source.Recorded`."""

    def __init__(self, flow: Flow, batch: int, length: int) -> None:
        """`flow` covers the point."""
        self.flow = flow
        self._point = batch, length
        self._sizes = flow.events.sizes(batch, length)
        signs = np.where(flow.events.born, 1, -1)
        self._changes: Ints = signs * self._sizes[flow.events.storage]
        self._categories = flow.events.category[flow.events.storage]

    @property
    def basis(self) -> str:
        """Which traces it comes from."""
        return self.flow.basis

    @property
    def stays(self) -> tuple[Storage, ...]:
        """What an update finds beside weights and gradients, such as the batch."""
        return tuple(Storage(size, category) for category, size in enumerate(self._beside(self.flow.cuts.starts[2])) if size)

    def walked(self, accumulating: bool) -> Walked:
        """The second forward, and the backward of the first micro-batch or, `accumulating`, of the second."""
        cuts = self.flow.cuts
        there = Meter()
        there.op = _BATCH_START
        for category, size in enumerate(self._beside(cuts.starts[1])):
            there.add(size, category)
        forward = [Piece(there.segment()), *self._pieces(cuts.forward)]
        backward = [*self._pieces(cuts.backward[accumulating]), Piece(NOTHING)]
        finish, middle = cuts.backward[accumulating][0], cuts.losses[accumulating]
        loss = None
        if middle is not None:
            loss = self._segment(finish.first, middle), self._segment(middle, finish.stop)
        return Walked(forward, backward, accumulating, loss=loss)

    def work(self) -> NetworkWork:
        """Operators of one micro-batch, whose backward finds no gradients."""
        found = values(self.flow.events.table, *self._point)
        phases: dict[str, Work] = {}
        for phase in ("forward", RECOMPUTE, "backward"):
            own = [
                (replace(op, flops=int(found[flops]), moved=int(found[moved])), count)
                for op, flops, moved, count in self.flow.operators
                if op.phase == phase
            ]
            phases[phase] = work_of(own)
        return NetworkWork(phases["forward"], phases[RECOMPUTE], phases["backward"])

    def replay(
        self, network: Network, settings: Settings, optimizer: Optimizer, expandable_segments: bool, empty_cache_steps: int
    ) -> Replay:
        """Loading and two steps through the allocator."""
        from tuneplan.profiling.fallback.flow_replay import replay

        return replay(
            self.flow.events, self._sizes, self.flow.cuts, network, settings, optimizer, expandable_segments, empty_cache_steps
        )

    def _beside(self, entry: int) -> list[int]:
        """Bytes by category that are live at an entry beside weights, buffers and gradients."""
        events = self.flow.events
        levels = _levels(self._categories[:entry], self._changes[:entry])
        levels[WEIGHTS] -= int(self._sizes[events.existing].sum())
        levels[GRADIENTS] = 0
        return levels

    def _pieces(self, stretches: Sequence[Stretch]) -> list[Piece]:
        run_of = self.flow.skeleton.run_of
        return [Piece(self._segment(s.first, s.stop), 1, run_of[s.layer]) for s in stretches]

    def _segment(self, first: int, stop: int) -> Segment:
        """A stretch of the log."""
        changes, categories = self._changes[first:stop], self._categories[first:stop]
        delta = _levels(categories, changes)
        if not len(changes):
            return Segment(delta, delta.copy(), 0, "")
        total = np.cumsum(changes)
        top = int(np.argmax(total))
        if total[top] <= 0:
            return Segment(delta, [0] * len(CATEGORIES), 0, "")
        peak = _levels(categories[: top + 1], changes[: top + 1])
        events = self.flow.events
        return Segment(delta, peak, int(total[top]), events.label(int(events.storage[first + top])))


def _levels(categories: Ints, changes: Ints) -> list[int]:
    """Sums of changes by category; exact, since no sum of bytes comes near 2**53."""
    return [int(total) for total in np.bincount(categories, weights=changes, minlength=len(CATEGORIES))]


def _grouped(content: Mapping[str, Any], storages: int) -> list[tuple[Operator, int, int, int]]:
    """Operators of the first micro-batch; those of one phase, kind, dtype and forms are one, with their number."""
    kinds = [Operator(str(phase), str(kind), str(dtype), 0, 0) for phase, kind, dtype in content["operators"]]
    numbers = content["operator_numbers"]
    flops, moved = (content["form_numbers"][storages + n * len(numbers) :][: len(numbers)] for n in (0, 1))
    found: dict[tuple[int, int, int], int] = {}
    before, micro_batch = "", 0
    for number, f, m in zip(numbers, flops, moved, strict=True):
        phase = kinds[number].phase
        micro_batch += phase == "forward" != before
        before = phase
        if micro_batch == 1:
            found[number, f, m] = found.get((number, f, m), 0) + 1
    return [(kinds[number], f, m, count) for (number, f, m), count in found.items()]
