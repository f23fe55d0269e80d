"""DeepSpeed's ZeRO stages 1 to 3, with or without offload to host memory, after the source of version 0.18.

- The engine casts the model to the run's 16-bit dtype and keeps fp32 masters and states of a rank's part in flat tensors
  (`stage_1_and_2.py`, `stage3.py`). A rank of stages 1 and 2 also holds all 16-bit weights, one of stage 3 its part of them.
- Gradients are copied into a bucket of a fixed size as they are made (at the end of the backward in stage 1), and a rank's part
  of them into a flat buffer. Before the update that buffer is flattened again and widened to fp32.
- Stage 3 gathers module by module, prefetches, and keeps what is used again soon (`partitioned_param_coordinator.py`).

Counted are these buffers. Modelled is when stage 3 holds which weights: by whole layers, while it goes module by module.
"""

from dataclasses import dataclass, replace

from tuneplan.planner.graph.meter import Meter, Segment
from tuneplan.planner.graph.tensor import BITS, GRADIENTS, OPTIMIZER_STATES, TEMPORARY, WEIGHTS, elements, round_block
from tuneplan.planner.methods.formats import QUANTIZED
from tuneplan.planner.models.network import Network
from tuneplan.planner.models.parameter import Parameter
from tuneplan.planner.parallel.shards import flat_part, layer_parameters, root_parameters, weight_bytes
from tuneplan.planner.parallel.step import EMPTY, Events, HostBytes, Piece, RankStep, Walked, key_of, sequence
from tuneplan.planner.training.optimizers import AnyOptimizer, state_bytes, step_scratch
from tuneplan.planner.training.sharding import Buckets, Sharding, share

BUCKET, GATHER, FLAT = "deepspeed.reduce_bucket", "deepspeed.all_gather", "deepspeed.flatten"


@dataclass(frozen=True, slots=True)
class _Trained:
    """A rank's part of what is trained, in bytes: as the model computes with it, and how many elements it has."""

    whole_bytes: int
    elements: int
    narrow: int

    @property
    def narrow_bytes(self) -> int:
        return round_block(self.elements * self.narrow)

    @property
    def wide_bytes(self) -> int:
        return round_block(4 * self.elements)


def step(network: Network, walked: Walked, optimizer: AnyOptimizer, sharding: Sharding, accumulating: bool) -> RankStep:
    """One rank's step.

    Args:
        network: the model under its method.
        walked: its walk; in stage 1 gradients stay to the end of the backward, or are added to those that stand, in stages 2
            and 3 each is taken away as soon as it is made.
        optimizer: the update, on flat fp32 tensors.
        sharding: the stage, ranks, buckets and offload.
        accumulating: gradients of an earlier micro-batch stand already.
    """
    stage, ranks = sharding.zero_stage, sharding.shard_ranks
    of_ranks = ("deepspeed", key_of(ranks))
    trained = network.remembered(of_ranks, lambda: _trained(network.parameters, ranks))
    flat = network.remembered((*of_ranks, "flat"), lambda: _flat(network.parameters, trained.elements))
    states = network.remembered((*of_ranks, optimizer), lambda: state_bytes(optimizer, [flat] if flat else [], False))
    on_host = "optimizer" in sharding.offload
    base = EMPTY.copy()
    kept = (stage == 3, sharding.offload, sharding.buckets)
    base[WEIGHTS] = network.remembered((*of_ranks, "weights", kept), lambda: _weights(network, sharding))
    masters = trained.wide_bytes if trained.narrow < 4 else 0
    host = HostBytes(states=states.host)
    if on_host:
        gradients = trained.wide_bytes + (trained.narrow_bytes if stage == 3 else 0)
        host = HostBytes(gradients=gradients, states=states.host + states.device + masters)
    if "parameters" in sharding.offload:
        host = replace(host, weights=sum(flat_part(p, ranks) for p in network.parameters))
    if not on_host:
        base[OPTIMIZER_STATES] = states.device + masters
    bucket = round_block(min(sharding.buckets.reduce_elements, _LARGEST) * trained.narrow)
    part = 0 if on_host else trained.narrow_bytes
    if stage == 3:
        base[TEMPORARY] = bucket
    held = base.copy()
    if stage == 3:
        base[GRADIENTS] = held[GRADIENTS] = part
    else:
        held[GRADIENTS] = part
        base[GRADIENTS] = (trained.whole_bytes if stage == 1 else part) if accumulating else 0
    key = (*of_ranks, stage, sharding.buckets, on_host, accumulating)
    if key not in walked.joined:
        forward, backward = list(walked.forward), list(walked.backward)
        if stage == 3:
            forward, backward = _gathered(network, walked, sharding.buckets)
            backward.append(Events(BUCKET).touch(min(bucket, trained.whole_bytes)).piece)
        elif stage == 2:
            backward.insert(_first(network, walked), Events(BUCKET).take(bucket).gradients(part).piece)
            backward.append(Events(BUCKET).give(bucket).spend(part if accumulating else 0).piece)
        else:
            filled = min(bucket, trained.whole_bytes)
            copied = Events(BUCKET).spend(filled).gradients(part).spend(trained.whole_bytes - filled)
            if accumulating:
                copied.gradients(trained.whole_bytes)  # they stand in the base
            backward.insert(_first(network, walked), Events(BUCKET).take(bucket).piece)
            backward.append(copied.give(bucket).piece)
        walked.joined[key] = sequence(forward), sequence(backward)
    forward_, backward_ = walked.joined[key]
    done = network.remembered(
        (*of_ranks, optimizer, "update", stage, sharding.offload, sharding.buckets),
        lambda: _update(trained, flat, optimizer, sharding),
    )
    return RankStep(base, forward_, backward_, held, done, host)


_LARGEST = 2**34


def _first(network: Network, walked: Walked) -> int:
    """Where in the backward the first gradient of a weight is made, and with it the bucket."""
    trained = {p.name for p in network.parameters if p.trainable}
    for index, piece in enumerate(walked.backward):
        if piece.run >= 0 and trained & set(network.runs[piece.run].block.parameters):
            return index
    return 0


def _trained(parameters: list[Parameter], ranks: int) -> _Trained:
    own = [p for p in parameters if p.trainable]
    narrow = max((BITS[p.storage] // 8 for p in own), default=2)
    return _Trained(sum(p.stored_bytes * p.count for p in own), share(sum(p.numel for p in own), ranks), narrow)


def _flat(parameters: list[Parameter], count: int) -> Parameter | None:
    """A rank's part of all trained weights as the one fp32 tensor that the optimizer sees."""
    first = next((p for p in parameters if p.trainable), None)
    if first is None:
        return None
    stored = round_block(4 * count)
    return replace(
        first, name="flat", shape=(count,), storage="fp32", stored_bytes=stored, count=1, state_shape=(), state_beside=()
    )


def _weights(network: Network, sharding: Sharding) -> int:
    """Bytes of weights that stand on the device between micro-batches."""
    if sharding.zero_stage < 3:
        return weight_bytes(network.parameters)
    parts = 0 if "parameters" in sharding.offload else sum(flat_part(p, sharding.shard_ranks) for p in network.parameters)
    return parts + sum(p.stored_bytes * p.count for p in network.parameters if _persists(p, sharding.buckets))


def _persists(parameter: Parameter, buckets: Buckets) -> bool:
    return not parameter.buffer and elements(parameter.shape) < buckets.persistent_elements and parameter.storage not in QUANTIZED


def _gathered(network: Network, walked: Walked, buckets: Buckets) -> tuple[list[Piece], list[Piece]]:
    """Forward and backward of stage 3: a window of gathered weights, and the last layers that are kept for the backward."""
    own = [[p for p in found if not p.buffer and not _persists(p, buckets)] for found in layer_parameters(network)]
    root = [p for p in root_parameters(network) if not p.buffer and not _persists(p, buckets)]
    counts = [sum(elements(p.shape) for p in found) for found in own]
    sizes = [sum(p.stored_bytes for p in found) for found in own]
    biggest = max((elements(p.shape) for found in (*own, root) for p in found), default=0)
    widest = max((p.stored_bytes for found in (*own, root) for p in found), default=0)
    total = sum(size * run.count for size, run in zip(sizes, network.runs, strict=True)) + sum(p.stored_bytes for p in root)
    per_element = widest / biggest if biggest else 0.0
    ahead = min(int((buckets.prefetch_elements + biggest) * per_element), total) if buckets.prefetch_elements else 0
    window = min(widest + ahead, total)
    kept = _kept(network, counts, sum(elements(p.shape) for p in root), buckets)
    forward = [Events(GATHER).take(window).take(ahead).piece]
    behind = sum(run.count for run, size in zip(network.runs, sizes, strict=True) if size) - kept
    for piece in walked.forward:
        size = sizes[piece.run] if piece.run >= 0 else 0
        if not size:
            forward.append(piece)
            continue
        plain = min(piece.count, max(behind, 0))
        behind -= piece.count
        forward += [replace(piece, count=plain)] if plain else []
        if piece.count - plain:
            forward.append(Piece(sequence([replace(piece, count=1), Events(GATHER).take(size).piece]), piece.count - plain))
    backward: list[Piece] = []
    left = kept
    for piece in walked.backward:
        size = sizes[piece.run] if piece.run >= 0 else 0
        held = min(piece.count, left) if size else 0
        left -= held
        if held:
            backward.append(Piece(sequence([replace(piece, count=1), Events(GATHER).give(size).piece]), held))
        if piece.count - held:
            backward.append(replace(piece, count=piece.count - held))
    backward.append(Events(GATHER).give(window).give(ahead).piece)
    return forward, backward


def _kept(network: Network, counts: list[int], root: int, buckets: Buckets) -> int:
    """How many of the last layers stay gathered: those that come again within the reuse distance (forward and back)."""
    distance, kept = 2 * root, 0
    for count, run in reversed(list(zip(counts, network.runs, strict=True))):
        for _ in range(run.count if count else 0):
            if distance >= buckets.reuse_elements:
                return kept
            distance += 2 * count
            kept += 1
    return kept


def _update(trained: _Trained, flat: Parameter | None, optimizer: AnyOptimizer, sharding: Sharding) -> Segment:
    """A rank's gradients flattened, widened, and the optimizer's own needs; on the host where it is offloaded."""
    meter = Meter()
    meter.op = FLAT
    if flat is None or "optimizer" in sharding.offload:
        return meter.segment()
    at_once = trained.elements
    if sharding.zero_stage == 3:
        at_once = min(at_once, sharding.buckets.sub_group_elements)
    if trained.narrow < 4:
        meter.add(round_block(trained.narrow * at_once), TEMPORARY)
        meter.add(round_block(4 * at_once), TEMPORARY)
        meter.drop(round_block(trained.narrow * at_once), TEMPORARY)
    if sharding.zero_stage < 3:
        meter.drop(trained.narrow_bytes, GRADIENTS)
    meter.op = f"{optimizer.name}.step"
    own = replace(flat, shape=(at_once,), stored_bytes=round_block(4 * at_once))
    meter.touch(step_scratch(optimizer, [own], False))
    if trained.narrow < 4:
        meter.drop(round_block(4 * at_once), TEMPORARY)
    return meter.segment()
