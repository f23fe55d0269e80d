"""Memory of a rank under any layout: the network that it computes, its pipeline stage, and what its engine keeps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tuneplan.planner.graph.meter import Meter, join
from tuneplan.planner.graph.tensor import ACTIVATIONS
from tuneplan.planner.memory import Known, StepMemory, finds_gradients, step_memory, walk
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models.network import Network
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.parallel.rank_network import in_flight, local_network, local_settings, stage_network
from tuneplan.planner.parallel.step import Events, Piece, Walked
from tuneplan.planner.training.optimizers import Optimizer
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Memory of the rank that holds most.

    Attributes:
        memory: its phases.
        network: what it computes.
        stage: its pipeline stage.
        stage_peaks: allocated peak of every stage [bytes].
    """

    memory: StepMemory
    network: Network
    stage: int = 0
    stage_peaks: tuple[int, ...] = ()


def rank_memory(
    spec: ModelSpec,
    method: Method,
    settings: Settings,
    optimizer: Optimizer,
    sharding: Sharding,
    whole: Network,
    micro_batches: int = 1,
    walked: Walked | None = None,
) -> RankMemory:
    """Memory of the fullest rank.

    Args:
        spec: the model.
        method: the method.
        settings: of the whole run.
        optimizer: the update.
        sharding: the layout.
        whole: the network on one GPU.
        micro_batches: of one update, which a pipeline has in flight.
        walked: the walk of `whole`, if it is known.

    Raises:
        InputError: the model cannot be split so.
    """
    if not sharding.splits_model:
        return RankMemory(step_memory(whole, settings, optimizer, sharding, walked), whole)
    return fullest(rank_parts(spec, method, settings, sharding, whole), settings, optimizer, sharding, micro_batches)


@dataclass(frozen=True, slots=True)
class Part:
    """What the ranks of a pipeline stage compute (of the only one, where there is no pipeline), and its walk."""

    network: Network
    walked: Walked


def rank_parts(spec: ModelSpec, method: Method, settings: Settings, sharding: Sharding, whole: Network) -> tuple[Part, ...]:
    """The part of each pipeline stage, walked as the layout's engine reads it; stages that are alike are one.

    Neither the optimizer nor, for one engine, the stage of sharding and the number of data-parallel ranks change them.

    Raises:
        InputError: the model cannot be split so.
    """
    network = local_network(spec, method, settings, sharding, whole)
    return stage_parts(network, settings, sharding, {})


def stage_parts(network: Network, settings: Settings, sharding: Sharding, known: Known) -> tuple[Part, ...]:
    """The same of what a rank computes of all pipeline stages.

    Args:
        network: it.
        settings: of the whole run.
        sharding: the layout.
        known: its layers that were walked under the same settings; those of other layouts with the same network.
    """
    own = local_settings(settings, sharding)
    own = replace(own, accumulating=finds_gradients(own, sharding))
    stages = sharding.pipeline_parallel
    if stages == 1:
        return (Part(network, walk(network, own, known)),)
    found: dict[tuple[object, bool, bool], Part] = {}
    parts = []
    for index in range(stages):
        part = stage_network(network, stages, index)
        layers = tuple((id(run.block), run.count) for run in part.runs if run.layered)
        key = layers, index == 0, index == stages - 1
        if key not in found:
            found[key] = Part(part, _stage_walk(part, own, index == stages - 1, known))
        parts.append(found[key])
    return tuple(parts)


def fullest(
    parts: Sequence[Part], settings: Settings, optimizer: Optimizer, sharding: Sharding, micro_batches: int = 1
) -> RankMemory:
    """Memory of the rank that holds most, of the parts of a layout. See `rank_memory` for the arguments."""
    own = local_settings(settings, sharding)
    found: dict[tuple[int, float], StepMemory] = {}
    results = []
    for index, part in enumerate(parts):
        waiting = in_flight(sharding, index, micro_batches)
        key = (id(part), waiting)
        if key not in found:
            found[key] = step_memory(part.network, own, optimizer, sharding, part.walked, waiting)
        results.append(found[key])
    if len(parts) == 1:
        return RankMemory(results[0], parts[0].network)
    peaks = tuple(int(memory.peak.peak_bytes) for memory in results)
    stage = max(range(len(parts)), key=lambda i: peaks[i])
    return RankMemory(results[stage], parts[stage].network, stage, peaks)


def _stage_walk(network: Network, settings: Settings, last: bool, known: Known) -> Walked:
    """The walk of a stage: what it sends on stays until the gradient of it has come back, in a buffer of its own."""
    walked = walk(network, settings, known)
    exit = network.runs[-1].block.exit
    if last or exit is None:
        return walked
    size = exit.storage.nbytes
    meter = Meter()
    meter.drop(size, ACTIVATIONS)
    for own in (walked, walked.other):
        if own is not None:
            index = next((i for i, piece in enumerate(own.backward) if piece.run >= 0), 0)
            own.backward.insert(index, Events("pipeline.receive").take(size).piece)
            end = own.backward[-1]
            own.backward[-1] = Piece(join(end.segment, meter.segment()))
    return walked
