"""Device memory over one training step in steady state: phases, peak and what is live at the peak."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, TypeAlias

from tuneplan.planner.graph.ledger import Shared, Walk
from tuneplan.planner.graph.meter import Levels, Meter, Segment, join
from tuneplan.planner.graph.tensor import ACTIVATIONS, KV_CACHE, LOGITS, TEMPORARY, WEIGHTS, Size, Storage, elements, round_block
from tuneplan.planner.lifetimes import gradient_uses, kept_outputs, lifetimes
from tuneplan.planner.models.network import Network, Run
from tuneplan.planner.models.parameter import Parameter
from tuneplan.planner.parallel import deepspeed, fsdp, replicated
from tuneplan.planner.parallel.step import EMPTY, HostBytes, Piece, RankStep, Walked
from tuneplan.planner.training.optimizers import AnyOptimizer
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import SINGLE, Sharding


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of the step.

    Attributes:
        peak_bytes: most bytes live in it.
        end_bytes: bytes live when it ends.
        op: the op at its peak.
        levels: bytes by category at its peak, in the order of CATEGORIES.
    """

    peak_bytes: Size
    end_bytes: Size
    op: str
    levels: Levels


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Allocated bytes of one step, by phase ("load", "forward", "backward", "optimizer_step").

    DPO has a "reference" after the forward, GRPO a "rollout" before it.
    """

    phases: dict[str, Phase]
    host: HostBytes
    peak_phase: str

    @property
    def peak(self) -> Phase:
        """The phase in which most bytes are live (of the first configuration, for arrays)."""
        return self.phases[self.peak_phase]


@dataclass(slots=True)
class _Layer:
    """A layer that was walked already: as its forward left it, and its segments; of the backward, those of both kinds."""

    walk: Walk
    forward: Segment
    backward: tuple[Segment, Segment] | None = None


Known: TypeAlias = dict[tuple[int, bool, bool, bool | None], _Layer]
"""Layers that were walked already, by their block, how they run, and what their backward finds."""


def walk(network: Network, settings: Settings, known: Known | None = None) -> Walked:
    """Walk each distinct block forward and backward: once, but for those that must know what other blocks do.

    For arrays both kinds of backward are walked at once, and the other one is `Walked.other`.

    Args:
        network: what is walked.
        settings: of the run.
        known: layers that walks of other networks under the same settings have met.
    """
    if network.recorded is not None:
        return network.recorded.walked(settings.accumulating)
    known = {} if known is None else known
    meter = _meter_for(settings)
    if meter is not Meter:
        result, adding, alike = _walk(network, settings, meter, None, known)
        if alike:
            asked, other = (adding, result) if settings.accumulating else (result, adding)
            asked.other = other
            return asked
    return _walk(network, settings, meter, settings.accumulating, known)[0]


def _walk(
    network: Network, settings: Settings, meter: Callable[[], Meter], accumulating: bool | None, known: Known
) -> tuple[Walked, Walked, bool]:
    """A walk; for `accumulating` None both kinds, the one that finds no gradients first, and whether one walk was enough."""
    shared = Shared(accumulating, gradient_uses(network), fused_update=network.fused_update)
    lives = lifetimes(network)
    forward: list[Piece] = []
    walks: list[tuple[Run, Walk]] = []
    own: dict[tuple[int, bool, bool, bool | None], Walk] = {}
    for index, run in enumerate(network.runs):
        forward.append(Piece(_deaths(lives.ended.get(index, ()))))
        key = (id(run.block), run.checkpointed, run.reversible, accumulating)
        if key in known:
            segment = known[key].forward
            walked = own[key] = own.get(key) or known[key].walk.copy()
        else:
            walked = Walk(run.block, meter)
            segment = walked.forward(keep=not run.checkpointed, rebuilt=run.reversible)
            if stands_alone(run):
                known[key] = _Layer(walked.copy(), segment)
                own[key] = walked
        held = lives.reborn.get(index, [])
        if held:
            forward += [Piece(segment, 1, index), Piece(_births(held))]
            forward += [Piece(segment, run.count - 1, index)] if run.count > 1 else []
        else:
            forward.append(Piece(segment, run.count, index))
        walks.append((run, walked))
    forward.append(Piece(_deaths(lives.released)))
    for run, walked in walks:
        forward.append(Piece(walked.release(settings.keep_outputs, lives.held), run.count))
        if settings.keep_outputs:
            forward.append(Piece(_deaths(kept_outputs(run)), run.count))
    result, other = Walked(forward, [], bool(accumulating)), Walked(list(forward), [], True)
    for index, (run, walked) in reversed(list(enumerate(walks))):
        key = (id(run.block), run.checkpointed, run.reversible, accumulating)
        layer = known.get(key)
        if layer is not None and layer.backward is not None:
            segment, adding = layer.backward
        else:
            again = Walk(run.block, meter) if run.checkpointed else walked
            segment = again.backward(shared, run.recomputation(settings), parted=True)
            adding = again.adding or segment
            result.loss, other.loss = again.parts or result.loss, again.adding_parts or other.loss
            if layer is not None:
                layer.backward = segment, adding
        spent = Piece(_deaths(lives.spent[index]))
        result.backward += [Piece(segment, run.count, index), spent]
        other.backward += [Piece(adding, run.count, index), spent]
    return result, other, not shared.apart


def stands_alone(run: Run) -> bool:
    """Whether a layer's backward is the same wherever it stands: its gradients are of its own weights and tensors alone."""
    ops = run.block.ops
    if not run.layered or any(op.output is not None and op.output.crosses for op in ops):
        return False
    of = [gradient.of for op in ops for gradient in op.gradients]
    return not any(tensor.crosses or (tensor.name and "*" not in tensor.name) for tensor in of)


def finds_gradients(settings: Settings, sharding: Sharding) -> bool:
    """Which walk the engine of a layout reads: one whose backwards find gradients and add their own to them, or the other."""
    if sharding.engine_used == "fsdp":
        return False
    return settings.accumulating or (sharding.engine_used == "deepspeed" and sharding.zero_stage > 1)


def _meter_for(settings: Settings) -> Callable[[], Meter]:
    """What counts births and deaths: a table of events for a few configurations at once."""
    sizes: Any = (settings.micro_batch_size, settings.seq_len, settings.target_length)
    if all(isinstance(size, int) for size in sizes):
        return Meter
    import numpy as np

    from tuneplan.planner.graph.array_meter import MOST, ArrayMeter

    shape = np.broadcast_shapes(*[np.shape(size) for size in sizes])
    return partial(ArrayMeter, shape) if prod(shape) <= MOST else Meter


def _births(storages: Iterable[Storage]) -> Segment:
    meter = Meter()
    meter.op = "embed_tokens"
    for storage in storages:
        meter.add(storage.nbytes, storage.category)
    return meter.segment()


def _deaths(storages: Iterable[Storage]) -> Segment:
    meter = Meter()
    for storage in storages:
        meter.drop(storage.nbytes, storage.category)
    return meter.segment()


def step_memory(
    network: Network,
    settings: Settings,
    optimizer: AnyOptimizer,
    sharding: Sharding = SINGLE,
    walked: Walked | None = None,
    waiting: float = 1,
) -> StepMemory:
    """One rank's memory over a whole step: forward, loss, backward, clipping, optimizer, as every step but the first runs.

    Weights, optimizer states and, while accumulating, gradients are there from the start.

    Args:
        network: the model under its method.
        settings: the run.
        optimizer: what updates the trained weights; several give arrays, see `Optimizers`.
        sharding: which model states are split over how many ranks.
        walked: the result of `walk` for the same network and settings, if it is known; `accumulating` may differ.
        waiting: micro-batches whose activations stand when a backward starts, itself included (pipelines).
    """
    walked = walked or walk(network, settings)
    offloaded = 0
    if "activations" in sharding.offload:
        walked, offloaded = without_activations(network, walked)
    rank = _rank_step(network, settings, optimizer, sharding, walked)
    base = rank.base
    if settings.keep_outputs:
        for run in network.runs:
            for storage in kept_outputs(run):
                base[storage.category] += run.count * storage.nbytes
                rank.held[storage.category] += run.count * storage.nbytes
    started = base.copy()
    for category in (ACTIVATIONS, KV_CACHE, *((LOGITS,) if sharding.pipeline_schedule == "gpipe" else ())):
        started[category] += scaled(rank.forward.delta[category], waiting - 1)
    after_forward = join(Segment(started, EMPTY, 0, ""), rank.forward)
    phases = {
        "load": _load(network.parameters, settings, rank),
        "forward": _phase(started, rank.forward),
        "backward": _phase(after_forward.delta, rank.backward),
        "optimizer_step": _phase(_with_batch(rank.held, network), rank.update),
    }
    if not settings.objective.plain:
        from tuneplan.planner.objective_memory import with_objective

        phases = with_objective(phases, network, settings, sharding)
    highest = max(phases, key=lambda name: _first(phases[name].peak_bytes))
    return StepMemory(phases, replace(rank.host, activations=scaled(offloaded, waiting)), highest)


def _with_batch(held: Levels, network: Network) -> Levels:
    """What an update finds, with what stays of the batch."""
    levels = held.copy()
    for run in network.runs:
        for storage in run.block.stays:
            levels[storage.category] += storage.nbytes
    return levels


def _rank_step(network: Network, settings: Settings, optimizer: AnyOptimizer, sharding: Sharding, walked: Walked) -> RankStep:
    """What the engine of a layout makes of a walk."""
    master = settings.precision == "master-weights"
    if not network.fused_update or sharding.engine_used != "fsdp":
        walked = _other(network, settings, walked, finds_gradients(settings, sharding))
    if sharding.engine_used == "fsdp":
        if network.fused_update:  # the update waits for the reduced gradients of a unit
            walked = walk(replace(network, fused_update=False), replace(settings, accumulating=False))
        return fsdp.step(network, walked, optimizer, sharding, master, settings.accumulating)
    if sharding.engine_used == "deepspeed":
        return deepspeed.step(network, walked, optimizer, sharding, settings.accumulating)
    return replicated.step(network, walked, optimizer, sharding.data_parallel, master, settings.accumulating)


def _other(network: Network, settings: Settings, walked: Walked, accumulating: bool) -> Walked:
    """The walk in which a backward finds gradients, to which it adds its own, or none."""
    if walked.accumulating == accumulating:
        return walked
    if walked.other is None:
        walked.other = walk(network, replace(settings, accumulating=accumulating))
    return walked.other


def _load(parameters: Sequence[Parameter], settings: Settings, rank: RankStep) -> Phase:
    """Loading: a weight that changes format (quantized, or cast to fp32) is there in 16 bits for a moment."""
    levels = EMPTY.copy()
    levels[WEIGHTS] = rank.base[WEIGHTS]
    changed = [p for p in parameters if not p.adapter and p.storage != settings.dtype]
    end = levels[WEIGHTS]
    levels[TEMPORARY] = max([round_block(2 * elements(p.shape)) for p in changed], default=0)
    return Phase(sum(levels), end, "weights", levels)


def without_activations(network: Network, walked: Walked) -> tuple[Walked, int]:
    """The walk where what layers save goes to host memory after their forward and comes back before their backward; its bytes.

    As torch's `save_on_cpu` and the offloading of checkpoints do. The copies of two layers, the one that runs and the next, are
    on the device; the first and last pieces of a model, which are no layers, keep theirs.
    """
    layered = {index for index, run in enumerate(network.runs) if run.layered}
    sizes = {p.run: p.segment.delta[ACTIVATIONS] for p in walked.forward if p.run in layered}
    total: Size = sum(p.count * sizes[p.run] for p in walked.forward if p.run in layered)
    ahead = max(sizes.values(), default=0)

    def moved(pieces: list[Piece], out: bool) -> list[Piece]:
        result = []
        for piece in pieces:
            size = sizes.get(piece.run, 0) if piece.run in layered else 0
            meter = Meter()
            meter.op = "offload"
            if out:
                meter.drop(size, ACTIVATIONS)
                result.append(Piece(join(piece.segment, meter.segment()), piece.count, piece.run) if size else piece)
            else:
                meter.add(size, ACTIVATIONS)
                meter.touch(ahead)
                result.append(Piece(join(meter.segment(), piece.segment), piece.count, piece.run) if size else piece)
        return result

    return Walked(moved(walked.forward, True), moved(walked.backward, False), walked.accumulating, loss=walked.loss), total


def scaled(size: Size, factor: float) -> Size:
    """A size some number of times, not necessarily whole."""
    product: Any = size * factor
    whole: Size = int(product) if isinstance(product, (int, float)) else product.astype("int64")
    return whole


def _phase(start: Levels, segment: Segment) -> Phase:
    levels = [a + b for a, b in zip(start, segment.peak, strict=True)]
    end: Size = sum(start) + sum(segment.delta)
    return Phase(sum(start) + segment.peak_total, end, segment.peak_op, levels)


def _first(size: Size) -> int:
    return size if isinstance(size, int) else int(size.flat[0])
