"""What splitting a model over GPUs and moving parts of it to host memory cost in time, beside the traffic of data parallelism.

Ring collectives as in `collectives`. Not counted: latency of small messages to the next rank, imbalance between pipeline stages
beyond the fullest one, uneven experts, contention of several groups for one link, the host's memory bandwidth shared with data
loading.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tuneplan.hardware_profiles.records import Gpu
from tuneplan.planner.graph.tape import Op
from tuneplan.planner.graph.tensor import BITS
from tuneplan.planner.models.network import Network
from tuneplan.planner.timing import collectives, constants
from tuneplan.planner.timing.collectives import Link
from tuneplan.planner.training.sharding import Sharding

STATE_TRAFFIC = 7
"""fp32 values that AdamW reads and writes for a weight: weight, two states, each both ways, and the gradient."""


@dataclass(frozen=True, slots=True)
class Machines:
    """Machines that are alike.

    Attributes:
        gpus: cards of one.
        network_bytes_per_second: between two of them, in one direction, all their adapters together; None for the assumed one.
        interconnect: "pcie" where a machine does not join its cards by NVLink.
    """

    gpus: int
    network_bytes_per_second: float | None = None
    interconnect: str | None = None

    def link(self, gpu: Gpu, ranks: int) -> Link:
        """What a group of ranks that lie next to each other talks over: a ring over machines is as fast as its slowest link."""
        near = collectives.gpu_link(gpu, self.interconnect)
        if ranks <= self.gpus:
            return near
        given = self.network_bytes_per_second
        far = given if given is not None else constants.NETWORK.value
        note = f"a network of {far * 8 / 1e9:.0f} Gbit/s a machine{'' if given is not None else ', which is assumed'}"
        return near if near.bytes_per_second < far else Link(far, note)


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds and micro-batches that a layout adds.

    Attributes:
        micro_batch_seconds: waited for in every micro-batch.
        step_seconds: waited for once in a step.
        filling: micro-batches' time in which a pipeline fills and drains.
        notes: what was assumed.
    """

    micro_batch_seconds: float = 0.0
    step_seconds: float = 0.0
    filling: float = 0.0
    notes: tuple[str, ...] = ()


def spread(network: Network, sharding: Sharding, gpu: Gpu, machines: Machines, experts_per_token: int = 0) -> Spread:
    """What a layout adds to the time of the rank whose network this is."""
    layers = [run for run in network.runs if run.layered]
    entry = next((run.block.entry for run in layers if run.block.entry is not None), None)
    if entry is None:
        return Spread()
    hidden = entry.nbytes * sharding.tensor_parallel if sharding.sequence_parallel else entry.nbytes
    passes = [(run, run.count * (3 if run.checkpointed else 2)) for run in layers]  # forward, backward, and again
    waits, notes = 0.0, []
    ranks = sharding.tensor_parallel
    if ranks > 1:
        link = machines.link(gpu, ranks)
        sums = sum(2 * times for _, times in passes) + 2
        waits = waits + sums * collectives.all_reduce_bytes(hidden, ranks) / link.rate("all_reduce", hidden, ranks)
        notes.append(f"two sums a layer and pass between {ranks} tensor-parallel ranks over {link.note}, not hidden")
    ranks = sharding.context_parallel
    if ranks > 1:
        link = machines.link(gpu, ranks * sharding.tensor_parallel)
        sent = sum((ranks - 1) * _keys_and_values(run.block.ops) * (times + run.count) for run, times in passes)
        waits = waits + sent / link.bytes_per_second * (1 - constants.OVERLAP.value)
        notes.append(f"keys and values go around {ranks} ranks over {link.note}, hidden but for a share")
    ranks = sharding.expert_parallel
    if ranks > 1:
        link = machines.link(gpu, ranks)
        rows = max(1, experts_per_token) * hidden
        sent = 0.0
        for run, times in passes:
            if any("experts" in name.split(".") for name in run.block.parameters):
                sent = sent + 2 * times * rows * (ranks - 1) / ranks
        waits = waits + sent / link.rate("alltoall", rows, ranks)
        notes.append(f"tokens go to the experts of {ranks} ranks and back over {link.note}, not hidden")
    filling = 0.0
    stages = sharding.pipeline_parallel
    if stages > 1:
        link = machines.link(gpu, sharding.gpu_count)
        waits = waits + 2 * sharding.virtual_stages * hidden / link.bytes_per_second
        filling = (stages - 1) / sharding.virtual_stages
        notes.append(
            f"a pipeline of {stages} stages fills and drains in the time of {filling:g} micro-batches (Narayanan et al. 2021)"
        )
    micro, step = _offloaded(network, sharding, gpu, notes)
    return Spread(waits + micro, step, filling, tuple(notes))


def _keys_and_values(ops: Sequence[Op]) -> float:
    return sum([sum([s.nbytes for s in op.reads[1:3]]) for op in ops if op.name.endswith("_attention")]) * 1.0


def _offloaded(network: Network, sharding: Sharding, gpu: Gpu, notes: list[str]) -> tuple[float, float]:
    """Seconds of copies to and from host memory that are not hidden: in a micro-batch, and in a step with the update there."""
    ranks = sharding.shard_ranks
    stored = sum(p.stored_bytes * p.count for p in network.parameters)
    trained = sum(p.numel for p in network.parameters if p.trainable)
    own = sum(p.numel * BITS.get(p.storage, 16) // 8 for p in network.parameters if p.trainable)
    micro = step = 0.0
    exposed = 1 - constants.OVERLAP.value
    if "parameters" in sharding.offload:
        times = 2 if sharding.zero_stage == 3 else 1
        micro += collectives.copy_seconds(times * stored / ranks, gpu) * exposed
        notes.append("weights come from host memory for every gather")
    if "optimizer" in sharding.offload:
        micro += collectives.copy_seconds(own / ranks, gpu) * exposed
        step += collectives.copy_seconds(own / ranks, gpu) if "parameters" not in sharding.offload else 0.0
        step += STATE_TRAFFIC * 4 * trained / ranks / constants.HOST_MEMORY.value
        notes.append("the update runs on the host, at the host's memory bandwidth")
    if "activations" in sharding.offload:
        saved = sum(
            run.block.entry.nbytes * run.count for run in network.runs if run.checkpointed and run.block.entry is not None
        )
        saved += sum(
            storage.nbytes * run.count
            for run in network.runs
            if run.layered and not run.checkpointed
            for storage in {id(s): s for op in run.block.ops for s in op.saved}.values()
        )
        micro += collectives.copy_seconds(2 * saved, gpu) * exposed
        notes.append("activations go to host memory and come back")
    return micro, step
