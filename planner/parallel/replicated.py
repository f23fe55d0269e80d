"""One GPU, and DistributedDataParallel: every rank holds everything."""

from tuneplan.planner.graph.meter import Meter, Segment
from tuneplan.planner.graph.tensor import BITS, GRADIENTS, OPTIMIZER_STATES, WEIGHTS, round_block
from tuneplan.planner.models.network import Network
from tuneplan.planner.models.parameter import Parameter
from tuneplan.planner.parallel.shards import gradient_bytes, weight_bytes
from tuneplan.planner.parallel.step import EMPTY, HostBytes, RankStep, Walked, joined
from tuneplan.planner.training.optimizers import AnyOptimizer, state_bytes, step_scratch


def bucket_bytes(parameters: list[Parameter]) -> int:
    """DDP's buckets: a second copy of all gradients, in flat buffers for each dtype.

    `gradient_as_bucket_view` is off by default, so they stand beside the gradients from one step to the next
    (`Reducer::initialize_buckets`, torch/csrc/distributed/c10d/reducer.cpp, torch 2.13). Not counted: what each bucket of 25 MiB
    is rounded up by.
    """
    sizes: dict[str, int] = {}
    for p in parameters:
        if p.trainable:
            sizes[p.storage] = sizes.get(p.storage, 0) + p.numel * BITS[p.storage] // 8
    return sum(round_block(size) for size in sizes.values())


def step(network: Network, walked: Walked, optimizer: AnyOptimizer, ranks: int, master: bool, accumulating: bool) -> RankStep:
    """One rank's step.

    Args:
        network: the model under its method.
        walked: its walk.
        optimizer: the update.
        ranks: that hold the same; 1 for one GPU.
        master: the optimizer keeps fp32 copies of 16-bit weights.
        accumulating: gradients stand when the forward starts.
    """
    updated = [] if network.fused_update else network.parameters
    weights, gradients, buckets = network.remembered(
        "replicated", lambda: (weight_bytes(network.parameters), gradient_bytes(updated), bucket_bytes(updated))
    )
    buckets = buckets * (ranks > 1)
    states, done = network.remembered(
        ("replicated", optimizer, master),
        lambda: (state_bytes(optimizer, updated, master), update(updated, optimizer, master)),
    )
    base = EMPTY.copy()
    base[WEIGHTS] = weights
    base[OPTIMIZER_STATES] = states.device
    base[GRADIENTS] = buckets + (gradients if accumulating else 0)
    held = base.copy()
    held[GRADIENTS] = buckets + gradients
    forward, backward = joined(walked)
    return RankStep(base, forward, backward, held, done, HostBytes(states=states.host))


def update(parameters: list[Parameter], optimizer: AnyOptimizer, master: bool) -> Segment:
    """Clipping, which holds a norm for each gradient, and the optimizer's step."""
    meter = Meter()
    meter.op = "clip_grad_norm_"
    meter.touch(round_block(4) * sum(p.count for p in parameters if p.trainable))
    meter.op = f"{optimizer.name}.step"
    meter.touch(step_scratch(optimizer, parameters, master))
    return meter.segment()
