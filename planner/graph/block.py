"""A block: the ops of one piece of the model (embedding, a decoder layer, head and loss), ready to be walked."""

from dataclasses import dataclass, field

from tuneplan.planner.graph.tape import Op, Tape
from tuneplan.planner.graph.tensor import Size, Storage, Tensor


@dataclass(slots=True, eq=False)
class Block:
    """Ops with their lifetimes.

    Attributes:
        name: what it is, such as "layer".
        ops: in forward order.
        entry: the tensor that the block before made (hidden states), or None for the first block.
        exit: the tensor that the next block reads, or None for the last.
        entry_held: see `close`.
        carried: storages made here that later blocks read (rotary tables, mask); they live to the end of the backward.
        frees: for each op, the storages whose last Python reference goes after it.
        batch: how many of the carried storages are the batch itself, which the training loop holds.
        trailing: storages that a variable of the loop over layers holds until the next layer is done.
        stays: of the batch, what is large beside an update, which finds it still there: pixels.
        output_ends: storages of `outputs` that are made here, by the op after which a recomputed forward lets them go.
        outputs: storages of the model's output object, which the training loop drops when the forward is over, or keeps.
        cached: storages that autocast holds until the forward, or a recomputed region, ends.
        leaves: activations that were made to require a gradient, and that gradient; they live as long as the loss's graph.
        early_leaves: those that stay, with their gradient, while the backward goes on to the stack before.
        side: tensors made here whose gradients come from other blocks, bytes of such a gradient, and their number.
        repeated: parameters of the layers (by id) that the block uses several times, and how often.
        parameters: names of the weights that it uses.
        beside: storages without a gradient that the block before made for this one beside its entry; they go when it ends.
        frozen_exit: what the next layer reads, where the exit is the state of a network beside the layers.
        locals: storages that a variable of the model's forward holds to its end, and nothing else.
        exit_held: of the block before a stack's first layer: such a variable holds its exit.
        left: storages that a recomputed forward leaves in a variable until the first layer's backward is over.
        entries_kept: of a layer: a variable of the model's forward holds what enters each of them, to its end.
        exit_passed: where the model is called with embeddings, they are its exit; the model's code makes nothing of them first.
    """

    name: str
    ops: list[Op]
    entry: Tensor | None
    exit: Tensor | None
    carried: tuple[Storage, ...] = ()
    frees: list[list[Storage]] = field(default_factory=list)
    batch: int = 0
    entry_held: bool = True
    outputs: tuple[Storage, ...] = ()
    cached: tuple[Storage, ...] = ()
    leaves: tuple[Storage, ...] = ()
    side: tuple[tuple[Tensor, Size, int], ...] = ()
    repeated: dict[int, int] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    beside: tuple[Storage, ...] = ()
    frozen_exit: Tensor | None = None
    locals: tuple[Storage, ...] = ()
    exit_held: bool = True
    exit_passed: bool = True
    left: tuple[Storage, ...] = ()
    entries_kept: bool = False
    early_leaves: tuple[Storage, ...] = ()
    stays: tuple[Storage, ...] = ()
    trailing: tuple[Storage, ...] = ()
    output_ends: dict[int, list[Storage]] = field(default_factory=dict)

    def left_here(self) -> tuple[Storage, ...]:
        """Those of `left` that the block makes itself."""
        return self.made(self.left)

    def made(self, storages: tuple[Storage, ...]) -> tuple[Storage, ...]:
        """Those that the block makes itself."""
        own = {id(op.allocates) for op in self.ops}
        return tuple([storage for storage in storages if id(storage) in own])


def close(
    name: str,
    tape: Tape,
    entry: Tensor | None,
    exit: Tensor | None,
    carried: tuple[Storage, ...] = (),
    batch: int = 0,
    entry_held: bool = True,
    leaves: tuple[Storage, ...] = (),
    locals: tuple[Storage, ...] = (),
    exit_held: bool = True,
) -> Block:
    """End a block: find the op after which nothing in the forward refers to a storage any more.

    `entry_held`: the model's loop over layers holds the entry until the block ends; else it is freed where it is last read.
    `exit_held`: see `Block`.
    """
    last: dict[int, int] = {}
    owned: dict[int, Storage] = {}
    if entry is not None and not entry_held:
        owned[id(entry.storage)] = entry.storage
    for index, op in enumerate(tape.ops):
        if op.allocates is not None:
            owned[id(op.allocates)] = op.allocates
            last[id(op.allocates)] = index
        for storage in op.reads:
            if id(storage) in owned:
                last[id(storage)] = index
    kept = {id(storage) for storage in (*carried, *locals, *tape.outputs, *tape.cached, *tape.passed, *tape.handed)}
    if exit is not None:
        kept.add(id(exit.storage))
    frees: list[list[Storage]] = [[] for _ in tape.ops]
    for key, index in last.items():
        if key not in kept:
            frees[index].append(owned[key])
    output_ends: dict[int, list[Storage]] = {}
    for storage in tape.outputs:
        if id(storage) in last:
            output_ends.setdefault(last[id(storage)], []).append(storage)
    return Block(
        name,
        tape.ops,
        entry,
        exit,
        carried,
        frees,
        batch,
        entry_held,
        outputs=tuple(tape.outputs),
        cached=tuple(tape.cached),
        leaves=leaves,
        side=tuple(tape.side),
        repeated=_repeated(tape.ops),
        parameters=tuple(tape.parameters),
        locals=locals,
        exit_held=exit_held,
        output_ends=output_ends,
    )


def behind(tape: Tape, *tensors: Tensor) -> tuple[Storage, ...]:
    """What the graph of tensors keeps alive: their storages, and those that the ops of a tape behind them saved."""
    wanted = {id(tensor) for tensor in tensors}
    found = {id(tensor.storage): tensor.storage for tensor in tensors}
    for op in reversed(tape.ops):
        if op.output is not None and id(op.output) in wanted:
            wanted |= {id(gradient.of) for gradient in op.gradients}
            found |= {id(storage): storage for storage in op.saved}
    return tuple(found.values())


def recomputed(ops: list[Op]) -> int:
    """How many ops of a checkpointed block run again: up to the last tensor that autograd saves.

    Mirrors `_recomputation_hook` with early stop, the default of torch/utils/checkpoint.py. The last operator does not run
    if all it saves are its inputs; what stands right before it without a launch is another output of its kernel.
    """
    last = max((index for index, op in enumerate(ops) if op.saves), default=-1)
    if last < 0:
        return 0
    own = [ops[last].allocates]
    for op in reversed(ops[:last]):
        if op.launches or op.allocates is None:
            break
        own.append(op.allocates)
    return last + 1 if any(storage in ops[last].saved for storage in own) else last


def _repeated(ops: list[Op]) -> dict[int, int]:
    uses: dict[int, int] = {}
    for op in ops:
        for gradient in op.gradients:
            if gradient.of.name and "*" in gradient.of.name:
                uses[id(gradient.of)] = uses.get(id(gradient.of), 0) + 1
    return {key: count for key, count in uses.items() if count > 1}
