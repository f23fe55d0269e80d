"""Device memory over one training step in steady state: phases, peak and what is live at the peak."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from tuneplan.planner.graph.ledger import Shared, Walk
from tuneplan.planner.graph.meter import Levels, Meter, Segment, join, repeat
from tuneplan.planner.graph.tensor import (
    CATEGORIES,
    GRADIENTS,
    OPTIMIZER_STATES,
    TEMPORARY,
    WEIGHTS,
    Size,
    Storage,
    elements,
    round_block,
)
from tuneplan.planner.models.assembly import Parameter
from tuneplan.planner.models.network import Network, Run
from tuneplan.planner.objective_memory import with_objective
from tuneplan.planner.training.optimizers import Optimizer, state_bytes, step_scratch
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import SINGLE, Sharding, bucket_bytes, gathered_bytes, share

_EMPTY: Levels = [0] * len(CATEGORIES)


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
    host_optimizer_bytes: int
    peak_phase: str

    @property
    def peak(self) -> Phase:
        """The phase in which most bytes are live (of the first configuration, for arrays)."""
        return self.phases[self.peak_phase]


@dataclass(slots=True)
class Walked:
    """The walks of all runs of a network, forward and backward, before they are joined: they do not depend on the ranks.

    `joined` remembers what `step_segments` made of them for each number of gradient ranks.
    """

    forward: list[tuple[Segment, int]]
    backward: list[tuple[Segment, int]]
    joined: dict[int, tuple[Segment, Segment]] = field(default_factory=dict)


def walk(network: Network, settings: Settings) -> Walked:
    """Walk each distinct block forward and backward."""
    shared = Shared(settings.accumulating, gradient_uses(network), fused_update=network.fused_update)
    forward: list[tuple[Segment, int]] = []
    walks: list[tuple[Run, Walk]] = []
    held = held_embeddings(network)
    for index, run in enumerate(network.runs):
        walked = Walk(run.block)
        segment = walked.forward(keep=not run.checkpointed, rebuilt=run.reversible)
        if index == 1 and held:
            forward += [(segment, 1), (_births(held), 1)]
            forward += [(segment, run.count - 1)] if run.count > 1 else []
        else:
            forward.append((segment, run.count))
        walks.append((run, walked))
    early, late = carried(network)
    forward.insert(-1, (_deaths(early), 1))
    forward.insert(len(forward) if network.embeddings_passed else -1, (_deaths(held), 1))
    for run, walked in walks:
        forward.append((walked.release(settings.keep_outputs), run.count))
        if settings.keep_outputs:
            forward.append((_deaths(kept_outputs(run)), run.count))
    backward: list[tuple[Segment, int]] = []
    for run, walked in reversed(walks):
        again = Walk(run.block) if run.checkpointed else walked
        segment = again.backward(shared, run.recomputation(settings))
        backward.append((segment, run.count))
    backward.append((_deaths(late), 1))
    return Walked(forward, backward)


def step_segments(walked: Walked, gradient_ranks: int = 1) -> tuple[Segment, Segment]:
    """The forward and the backward of a step as segments.

    `gradient_ranks`: a layer's gradients are whole while its backward runs, then reduced and split over so many ranks.
    """
    if gradient_ranks in walked.joined:
        return walked.joined[gradient_ranks]
    forward = backward = Segment(_EMPTY, _EMPTY, 0, "")
    for segment, count in walked.forward:
        forward = join(forward, repeat(segment, count))
    for segment, count in walked.backward:
        backward = join(backward, repeat(_reduced(segment, gradient_ranks), count))
    walked.joined[gradient_ranks] = forward, backward
    return forward, backward


def _reduced(segment: Segment, gradient_ranks: int) -> Segment:
    """A block's backward after which each rank keeps only its part of the block's gradients."""
    if gradient_ranks == 1:
        return segment
    delta = segment.delta.copy()
    delta[GRADIENTS] = share(delta[GRADIENTS], gradient_ranks)
    return replace(segment, delta=delta)


def gradient_uses(network: Network) -> dict[int, int]:
    """How many gradients each parameter receives that is used outside the layers or in several of them.

    Layers alike are walked once, so their use counts once.
    """
    uses: dict[int, int] = {}
    ends = {id(g.of) for run in (network.runs[0], network.runs[-1]) for op in run.block.ops for g in op.gradients}
    for run in network.runs:
        for op in run.block.ops:
            for gradient in op.gradients:
                if gradient.of.name and ("*" not in gradient.of.name or id(gradient.of) in ends):
                    uses[id(gradient.of)] = uses.get(id(gradient.of), 0) + 1
    return uses


def carried(network: Network) -> tuple[list[Storage], list[Storage]]:
    """Storages that blocks share: those that die with the forward, and those that live to the end of the backward.

    What reversible layers computed last is among the latter. Others stay where an op saved them, where a checkpoint holds its
    arguments, and where they are the batch itself.
    """
    arguments = {id(storage) for run in network.runs if run.checkpointed for op in run.block.ops for storage in op.reads}
    arguments |= {id(storage) for run in network.runs for storage in run.block.leaves}
    saved = {id(storage) for run in network.runs for op in run.block.ops for storage in op.saved}
    early: list[Storage] = []
    late: list[Storage] = []
    for run in network.runs:
        for index, storage in enumerate(run.block.carried):
            held = id(storage) in arguments or id(storage) in saved or index < run.block.batch
            (late if held else early).append(storage)
        early += [storage for storage in run.block.locals if id(storage) not in saved]
        late += [storage for storage in run.block.locals if id(storage) in saved]
        pinned = {id(storage): storage for op in run.block.ops for storage in op.pinned}
        late += list(pinned.values()) * run.count
    rebuilt = [run.block.entry for run in network.runs if run.reversible]
    late += [entry.storage for entry in rebuilt[:1] if entry is not None]
    return early, late


def held_embeddings(network: Network) -> list[Storage]:
    """What enters the first layer, where nothing else holds it: a variable of the model's forward does, up to the head.

    The walk of the first layer lets it go with its other input, so it is born again after that layer.
    """
    first, run = network.runs[0].block, network.runs[1]
    if first.exit is None or not first.exit_held or (run.checkpointed and not run.reversible):
        return []
    storage = first.exit.storage
    saved = not run.reversible and any(storage in op.saved for op in run.block.ops)
    return [] if saved else [storage]


def kept_outputs(run: Run) -> tuple[Storage, ...]:
    """What a loop that keeps the model's outputs, and with them the loss's graph, holds of one block between steps."""
    return run.block.outputs + run.block.leaves


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
    optimizer: Optimizer,
    sharding: Sharding = SINGLE,
    walked: Walked | None = None,
) -> StepMemory:
    """One rank's memory over a whole step: forward, loss, backward, clipping, optimizer, as every step but the first runs.

    Weights, optimizer states and, while accumulating, gradients are there from the start.

    Args:
        network: the model under its method.
        settings: the run.
        optimizer: what updates the trained weights.
        sharding: which model states are split over how many ranks.
        walked: the result of `walk` for the same network and settings, if it is known.
    """
    master = settings.precision == "master-weights"
    parameters = network.parameters
    updated = [] if network.fused_update else parameters
    states = state_bytes(optimizer, updated, master)
    gradients = share(gradient_bytes(updated), sharding.gradient_ranks)
    base = _EMPTY.copy()
    base[WEIGHTS] = share(weight_bytes(parameters), sharding.weight_ranks)
    base[OPTIMIZER_STATES] = share(states.device, sharding.state_ranks)
    buckets = bucket_bytes(sharding, gradient_bytes(updated))
    base[GRADIENTS] = buckets + (gradients if settings.accumulating else 0)
    if settings.keep_outputs:
        for run in network.runs:
            for storage in kept_outputs(run):
                base[storage.category] += run.count * storage.nbytes
    forward, backward = step_segments(walked or walk(network, settings), sharding.gradient_ranks)
    computing = base.copy()
    computing[TEMPORARY] = gathered_bytes(sharding, network)
    after_forward = join(Segment(computing, _EMPTY, 0, ""), forward)
    held = base.copy()
    held[GRADIENTS] = buckets + gradients
    phases = {
        "load": _load(parameters, settings, sharding),
        "forward": _phase(computing, forward),
        "backward": _phase(after_forward.delta, backward),
        "optimizer_step": _phase(held, _update(updated, optimizer, master, sharding)),
    }
    phases = with_objective(phases, network, settings, sharding)
    highest = max(phases, key=lambda name: _first(phases[name].peak_bytes))
    return StepMemory(phases, share(states.host, sharding.state_ranks), highest)


def weight_bytes(parameters: Sequence[Parameter]) -> int:
    """Bytes of all weights in the formats they are kept in."""
    return sum(p.stored_bytes * p.count for p in parameters)


def gradient_bytes(parameters: Sequence[Parameter]) -> int:
    """Bytes of the gradients of all trained weights."""
    return sum(p.stored_bytes * p.count for p in parameters if p.trainable)


def _load(parameters: Sequence[Parameter], settings: Settings, sharding: Sharding) -> Phase:
    """Loading: a weight that changes format (quantized, or cast to fp32) is there in 16 bits for a moment."""
    levels = _EMPTY.copy()
    levels[WEIGHTS] = share(weight_bytes(parameters), sharding.weight_ranks)
    changed = [p for p in parameters if not p.adapter and p.storage != settings.dtype]
    end = levels[WEIGHTS]
    levels[TEMPORARY] = max([round_block(2 * elements(p.shape)) for p in changed], default=0)
    return Phase(sum(levels), end, "weights", levels)


def _update(parameters: Sequence[Parameter], optimizer: Optimizer, master: bool, sharding: Sharding) -> Segment:
    meter = Meter()
    trained = [p for p in parameters if p.trainable]
    meter.op = "clip_grad_norm_"
    meter.touch(round_block(4) * sum(p.count for p in trained))
    meter.op = f"{optimizer.name}.step"
    meter.touch(share(step_scratch(optimizer, parameters, master), sharding.state_ranks))
    return meter.segment()


def _phase(start: Levels, segment: Segment) -> Phase:
    levels = [a + b for a, b in zip(start, segment.peak, strict=True)]
    end: Size = sum(start) + sum(segment.delta)
    return Phase(sum(start) + segment.peak_total, end, segment.peak_op, levels)


def _first(size: Size) -> int:
    return size if isinstance(size, int) else int(size.flat[0])
