"""Memory of a rank under any layout: the network that it computes, its pipeline stage, and what its engine keeps."""

from dataclasses import dataclass

from tuneplan.planner.graph.meter import Meter, join
from tuneplan.planner.graph.tensor import ACTIVATIONS
from tuneplan.planner.memory import StepMemory, step_memory, walk
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
    network = local_network(spec, method, settings, sharding, whole)
    own = local_settings(settings, sharding)
    stages = sharding.pipeline_parallel
    if stages == 1:
        return RankMemory(step_memory(network, own, optimizer, sharding), network)
    found: dict[tuple[int, float, bool, bool], tuple[StepMemory, Network]] = {}
    results = []
    for index in range(stages):
        part = stage_network(network, stages, index)
        waiting = in_flight(sharding, index, micro_batches)
        key = (sum(run.count for run in part.runs), waiting, index == 0, index == stages - 1)
        if key not in found:
            walk_ = _stage_walk(part, own, last=index == stages - 1)
            found[key] = step_memory(part, own, optimizer, sharding, walk_, waiting), part
        results.append(found[key])
    peaks = tuple(int(memory.peak.peak_bytes) for memory, _ in results)
    fullest = max(range(stages), key=lambda i: peaks[i])
    memory, part = results[fullest]
    return RankMemory(memory, part, fullest, peaks)


def _stage_walk(network: Network, settings: Settings, last: bool) -> Walked:
    """The walk of a stage: what it sends on stays until the gradient of it has come back, in a buffer of its own."""
    walked = walk(network, settings)
    exit = network.runs[-1].block.exit
    if last or exit is None:
        return walked
    size = exit.storage.nbytes
    meter = Meter()
    meter.drop(size, ACTIVATIONS)
    index = next((i for i, piece in enumerate(walked.backward) if piece.run >= 0), 0)
    walked.backward.insert(index, Events("pipeline.receive").take(size).piece)
    end = walked.backward[-1]
    walked.backward[-1] = Piece(join(end.segment, meter.segment()))
    return walked
