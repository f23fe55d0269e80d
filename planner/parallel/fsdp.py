"""FSDP2 (`fully_shard`): what it gathers, reduces and frees at the borders of units, as torch 2.13 does it.

One unit a decoder layer and a root unit for the rest, or the units that accelerate makes (`shards.accelerate_units`). Mirrors
torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py and _fsdp_collectives.py:

- A gather copies all ranks' parts into one buffer and from there into one storage a weight. In the forward the buffer stays
  until the next unit is whole (`comm_ctx.all_gather_state`, and a local variable of `wait_for_unshard`); in the backward it
  goes at once, but the next unit's is prefetched before the layer's backward starts.
- After a layer's backward its weights go, then the buffer of the reduction before (`reduce_scatter_states` keeps one), then
  whole gradients are copied into a buffer, and freed, and reduced into one flat piece that the layer's gradients share.
- The root's gradients are reduced when the backward is over. So are those of a layer whose input needs no gradient.
"""

from dataclasses import dataclass

from tuneplan.planner.graph.meter import Segment
from tuneplan.planner.graph.tensor import GRADIENTS, OPTIMIZER_STATES, WEIGHTS
from tuneplan.planner.models.network import Network
from tuneplan.planner.models.parameter import Parameter
from tuneplan.planner.parallel.replicated import update
from tuneplan.planner.parallel.shards import (
    Unit,
    accelerate_units,
    beside_bytes,
    from_host,
    layer_parameters,
    root_parameters,
    split,
    unit,
    weight_bytes,
)
from tuneplan.planner.parallel.step import EMPTY, NOTHING, Events, HostBytes, Piece, RankStep, Walked, key_of, sequence
from tuneplan.planner.training.optimizers import AnyOptimizer, state_bytes
from tuneplan.planner.training.sharding import Sharding

GATHER, REDUCE = "fsdp.all_gather", "fsdp.reduce_scatter"


@dataclass(frozen=True, slots=True)
class _Parts:
    """A rank's parts of all weights, which neither the batch nor the optimizer changes.

    Attributes:
        layers: the unit of each run; an empty one where it is no layer.
        root: the unit of the rest.
        tail: see `_Frame`.
        every: each weight's part.
        kept_bytes: of all gradients as the optimizer reads them.
        weight_bytes: of all parts as they are kept.
    """

    layers: list[Unit]
    root: Unit
    tail: tuple[int, int]
    every: list[Parameter]
    kept_bytes: int
    weight_bytes: int


@dataclass(slots=True)
class _Frame:
    """Units of a network on one rank.

    Attributes:
        layers: of each run; an empty unit where it is no layer.
        root: of what is outside the layers; of what is in no other unit where the units are accelerate's.
        tail: accelerate's unit of last norm and head: index of the run that gathers it in the forward, that of the run whose
            backward reduces it; the same but where the head is the embedding. (-1, -1) where there is none. It and the root
            stay whole from the forward to their reduction.
        reshards: whether a layer's weights go after its forward.
        accumulating: gradients of an earlier micro-batch stand already.
        replicated: several groups of ranks hold the same parts (hybrid sharding).
    """

    layers: list[Unit]
    root: Unit
    reshards: bool
    accumulating: bool
    replicated: bool
    tail: tuple[int, int] = (-1, -1)

    @property
    def own_root(self) -> bool:
        """Whether the root has embedding, last norm and head."""
        return self.tail == (-1, -1)

    def gathered(self, run: int) -> Unit:
        """What is gathered for a run's forward."""
        if run < 0 or (run == self.tail[1] and run != self.tail[0]):
            return Unit()
        return self.layers[self.tail[1] if run == self.tail[0] else run]


def step(
    network: Network, walked: Walked, optimizer: AnyOptimizer, sharding: Sharding, wide: bool, accumulating: bool
) -> RankStep:
    """One rank's step.

    Args:
        network: the model under its method.
        walked: its walk, in which every backward finds no gradients.
        optimizer: the update.
        sharding: stage 3 frees weights after the forward of a layer, stage 2 keeps them to the backward.
        wide: trained weights, their gradients and states are kept in fp32, and cast to compute (`MixedPrecisionPolicy`).
        accumulating: gradients of an earlier micro-batch stand already.
    """
    ranks = sharding.shard_ranks
    reduce = sharding.reduce_dtype
    key = ("fsdp", sharding.units, key_of(ranks), wide, reduce)
    parts = network.remembered(key, lambda: _parts(network, sharding.units, ranks, wide, reduce))
    layers, root, kept = parts.layers, parts.root, parts.kept_bytes
    updated = [] if network.fused_update else parts.every
    states = network.remembered((*key, optimizer), lambda: state_bytes(optimizer, updated, False))
    base = EMPTY.copy()
    base[WEIGHTS] = parts.weight_bytes
    host = HostBytes(states=states.host)
    offloads = "parameters" in sharding.offload
    if offloads:  # parts come over to be gathered, and reduced gradients go back at once
        stays = beside_bytes(network.parameters)
        host = HostBytes(base[WEIGHTS] - stays, kept, states.device + states.host)
        base[WEIGHTS] = stays
        layers, root = [from_host(u) for u in layers], from_host(root)
        kept = 0
    else:
        base[OPTIMIZER_STATES] = states.device
    if network.fused_update:  # each unit's gradients are used and freed when they are reduced
        kept = 0
    base[GRADIENTS] = kept * accumulating
    found = network.fused_update or accumulating
    frame = _Frame(layers, root, sharding.zero_stage == 3, found, _replicated(sharding), parts.tail)
    way = (*key, sharding.zero_stage, key_of(accumulating), frame.replicated, offloads)
    if way not in walked.joined:
        walked.joined[way] = sequence(_forward(network, walked, frame)), sequence(_backward(network, walked, frame))
    forward, backward = walked.joined[way]
    held = base.copy()
    held[GRADIENTS] = kept
    if offloads:
        return RankStep(base, forward, backward, held, NOTHING, host)
    done = network.remembered((*key, optimizer, "update"), lambda: update(updated, optimizer, False))
    return RankStep(base, forward, backward, held, done, host)


def _replicated(sharding: Sharding) -> bool:
    return sharding.shard_group > 0 and sharding.replicas > 1


def _parts(network: Network, units: str, ranks: int, wide: bool, reduce: str) -> _Parts:
    members, rest, tail = layer_parameters(network), root_parameters(network), (-1, -1)
    if units == "accelerate":
        members, rest, tail = accelerate_units(network)
    layers = [unit(parameters, ranks, wide, reduce) for parameters in members]
    root = unit(rest, ranks, wide, reduce)
    every = [split(p, ranks, wide) for p in network.parameters]
    kept = root.kept_bytes + sum(u.kept_bytes * run.count for u, run in zip(layers, network.runs, strict=True))
    return _Parts(layers, root, tail, every, kept, weight_bytes(every))


def _forward(network: Network, walked: Walked, frame: _Frame) -> list[Piece]:
    """The forward: the root first and last, around it every layer."""
    before = frame.root
    pieces = [Events(GATHER).touch(_copying(before)).take(before.gathered_bytes).take(before.whole_bytes).piece]
    last = max(index for index, piece in enumerate(walked.forward) if piece.run == len(network.runs) - 1)
    for index, piece in enumerate(walked.forward):
        own = frame.gathered(piece.run)
        if own.empty or index > last:
            pieces.append(piece)
        else:
            for count in (1, piece.count - 1):  # what the unit before left behind differs for the first
                if count:
                    reshards = frame.reshards and piece.run != frame.tail[0]
                    pieces.append(Piece(_layer_forward(piece.segment, own, before, reshards), count))
                before = own
        if index == last:
            end = Events(GATHER)
            if frame.reshards and frame.own_root:
                end.give(frame.root.whole_bytes)
            pieces.append(end.give(before.gathered_bytes).piece)
    return pieces


def _layer_forward(segment: Segment, own: Unit, before: Unit, reshards: bool) -> Segment:
    start = Events(GATHER).touch(_copying(own)).take(own.gathered_bytes).take(own.whole_bytes)
    pieces = [start.give(before.gathered_bytes).piece, Piece(segment)]
    if reshards:
        pieces.append(Events(GATHER).give(own.whole_bytes).piece)
    return sequence(pieces)


def _copying(own: Unit) -> int:
    """While parts are cast to be gathered, the cast ones stand beside the buffer."""
    return own.cast_bytes + own.gathered_bytes


def _backward(network: Network, walked: Walked, frame: _Frame) -> list[Piece]:
    """The backward: gathers ahead of each layer, reductions behind it, and at the end what is left."""
    order = [piece.run for piece in walked.backward for _ in range(piece.count if piece.run >= 0 else 0)]
    order = [index for index in order if not frame.layers[index].empty]
    waiting: list[Unit] = []
    start = Events(GATHER)
    if frame.reshards and frame.own_root:
        start.touch(_copying(frame.root)).take(frame.root.gathered_bytes).take(frame.root.whole_bytes)
        start.give(frame.root.gathered_bytes)
        _prefetch(start, frame.layers[order[0]] if order else Unit())
    pieces = [start.piece]
    reducing = held = done = unused = 0
    for piece in walked.backward[:-1]:
        own = frame.layers[piece.run] if piece.run >= 0 else Unit()
        if own.empty:
            pieces.append(piece)
            continue
        block, last, segment = network.runs[piece.run].block, piece.run == frame.tail[1], piece.segment
        if not last and (block.exit is None or not block.exit.requires_grad):
            pieces.append(piece)  # no gradient comes here: what was prefetched stays
            if not frame.own_root:
                unused += 0 if frame.reshards else piece.count * own.whole_bytes
            done += piece.count
            continue
        if last and walked.loss is not None:  # the unit's hook comes with the gradient of the head's output
            pieces.append(Piece(walked.loss[0]))
            segment = walked.loss[1]
        for count in _alike(piece.count):
            follows = order[done + count] if done + count < len(order) else -1
            after = frame.layers[follows] if follows >= 0 else Unit()
            entered = Unit() if last else own  # which stayed whole
            parts = [_enter(entered, after, frame.reshards), Piece(segment)]
            if not frame.own_root and frame.reshards and not _reached(network, follows):
                unused = after.gathered_bytes
            tied = last and frame.tail[0] != piece.run
            if not tied and (block.entry is None or block.entry.requires_grad):
                parts.append(_leave(own, reducing, frame))
                reducing = own.reduce_bytes
                held += count * _all_reduced(own, frame)
            else:
                waiting.append(own)
            pieces.append(Piece(sequence(parts), count))
            done += count
    pieces.append(_end(frame, waiting, reducing, held))
    pieces.append(Events(GATHER).give(unused).piece)
    return [*pieces, *walked.backward[-1:]]


def _reached(network: Network, run: int) -> bool:
    """Whether a gradient comes to a run, of those that have one behind them."""
    exit = network.runs[run].block.exit if run >= 0 else None
    return run < 0 or (exit is not None and exit.requires_grad)


def _alike(count: int) -> list[int]:
    """The first layer of a run follows another, the last has another after it; those between are alike."""
    return [c for c in (1, count - 2, 1) if c > 0] if count > 1 else [1]


def _prefetch(events: Events, own: Unit) -> None:
    events.touch(_copying(own)).take(own.gathered_bytes)


def _enter(own: Unit, after: Unit, reshards: bool) -> Piece:
    """Before a layer's backward its weights are there, and the next layer's are on their way."""
    events = Events(GATHER)
    if reshards:
        events.take(own.whole_bytes).give(own.gathered_bytes)
        _prefetch(events, after)
    return events.piece


def _leave(own: Unit, reducing: int, frame: _Frame) -> Piece:
    """After a layer's backward its weights go, and its gradients are reduced; `reducing`: buffer of the reduction before."""
    events = Events(REDUCE).give(own.whole_bytes).give(reducing)
    _reduce(events, own, frame)
    return events.piece


def _reduce(events: Events, own: Unit, frame: _Frame) -> None:
    if not own.gradient_bytes:
        return
    copied = own.kept_bytes * (own.reduced_bytes != own.kept_bytes)  # else the same storage goes under another name
    events.take(own.reduce_bytes).spend(own.gradient_bytes).take(own.reduced_bytes)
    events.gradients(copied).give(own.reduced_bytes).gradients(own.kept_bytes - copied)
    events.take(_all_reduced(own, frame))
    events.spend(own.kept_bytes * frame.accumulating)


def _all_reduced(own: Unit, frame: _Frame) -> int:
    """Bytes of the buffer that the all-reduce between replicas keeps to the end, where it is not the gradients themselves."""
    if not frame.replicated:
        return 0
    same = own.reduced_bytes == own.kept_bytes and not frame.accumulating
    return 0 if same else own.reduced_bytes


def _end(frame: _Frame, waiting: list[Unit], reducing: int, held: int) -> Piece:
    """`_root_post_backward_final_callback`: the root, then layers that could not be reduced before."""
    events = Events(REDUCE)
    for own in (frame.root, *waiting):
        events.give(own.whole_bytes).give(reducing)
        _reduce(events, own, frame)
        reducing = own.reduce_bytes
        held += _all_reduced(own, frame)
    return events.give(reducing).give(held).piece
