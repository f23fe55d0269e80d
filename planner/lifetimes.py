"""What lives across the blocks of a network: batch, masks, an encoder's output, and what a variable of the model's code holds.

A block that is no layer (an embedding, the bridge from one stack of layers to the next, the head) ends the forward of the stack
before it, and its backward comes when that of its own stack is over.
"""

from dataclasses import dataclass

from tuneplan.planner.graph.tensor import TEMPORARY, Size, Storage
from tuneplan.planner.models.network import Network, Run


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Births and deaths beside those of the blocks, by the index of a run.

    Attributes:
        reborn: held again once the first layer of the run has let it go.
        ended: gone before the run's forward.
        released: gone when the forward is over.
        spent: gone after the run's backward.
        held: storages (by id) that stay although the model's output object goes.
    """

    reborn: dict[int, list[Storage]]
    ended: dict[int, list[Storage]]
    released: list[Storage]
    spent: dict[int, list[Storage]]
    held: frozenset[int]


def lifetimes(network: Network) -> Lifetimes:
    """Where the storages that blocks share are born and die.

    What stays was saved by an op, is an argument of a checkpoint or the batch itself, or what reversible layers computed last.
    """
    runs = network.runs
    blocks = {id(run.block): run.block for run in runs}
    saved = {id(storage) for block in blocks.values() for op in block.ops for storage in op.saved}
    again = {id(run.block): run.block for run in runs if run.checkpointed}
    arguments = {id(storage) for block in again.values() for op in block.ops for storage in op.reads}
    pins = {key: {id(s): s for op in block.ops for s in op.pinned} for key, block in blocks.items()}
    arguments |= {id(storage) for run in runs for storage in run.block.leaves}
    holders = _holders(runs)
    ends = [index for index, run in enumerate(runs) if not run.layered]
    reborn: dict[int, list[Storage]] = {}
    ended: dict[int, list[Storage]] = {index: [] for index in ends}
    released: list[Storage] = []
    spent: dict[int, list[Storage]] = {index: [] for index in range(len(runs))}
    held: set[int] = set()
    for index, run in enumerate(runs):
        end = next((e for e in ends if e > index), len(runs) - 1)
        over = ended.get(end, released)  # a pipeline stage without the head ends with a layer
        for place, storage in enumerate(run.block.carried):
            batch = place < run.block.batch
            if storage in run.block.stays:
                held.add(id(storage))
            elif storage in run.block.early_leaves:
                spent[0] += [storage, Storage(storage.nbytes, TEMPORARY)]
                held.add(id(storage))
            elif batch or id(storage) in arguments or id(storage) in saved:
                spent[0 if batch or _leaf(run, storage) else _last_reader(runs, index, holders.get(id(storage), 0))].append(
                    storage
                )
                held.add(id(storage))
            elif storage not in run.block.outputs:
                over.append(storage)
        for storage in run.block.locals:
            where = spent[_start(runs, index)] if id(storage) in saved else over
            where.append(storage)
        if run.block.entries_kept and not run.checkpointed and run.block.entry is not None:
            entry = run.block.entry.storage
            over += [] if any(entry in op.saved for op in run.block.ops) else [entry] * run.count
        spent[0] += list(pins[id(run.block)].values()) * run.count
        if run.checkpointed and run.block.left:
            spent[_start(runs, index) + 1] += run.block.left_here() * run.count
        entering = _held_entry(runs, index)
        if entering is not None:
            reborn[index + 1] = [entering]
            if any(entering in op.saved for op in run.block.ops):
                spent[index].append(entering)
            else:
                (released if network.embeddings_passed and run.block.exit_passed else over).append(entering)
    rebuilt = [run.block.entry for run in runs if run.reversible]
    spent[0] += [entry.storage for entry in rebuilt[:1] if entry is not None]
    return Lifetimes(reborn, ended, released, spent, frozenset(held))


def _leaf(run: Run, storage: Storage) -> bool:
    """Whether autograd holds it as a leaf, to the end."""
    return any(op.allocates is storage and op.output is not None and op.output.crosses and not op.reads for op in run.block.ops)


def _holders(runs: list[Run]) -> dict[int, int]:
    """The first run, whose backward is the last, that holds a storage (by id): its ops save it, or its checkpoint has it."""
    first: dict[int, int] = {}
    met: set[tuple[int, bool]] = set()
    for index, run in enumerate(runs):
        if (id(run.block), run.checkpointed) in met:
            continue
        met.add((id(run.block), run.checkpointed))
        for op in run.block.ops:
            for storage in (*op.saved, *op.reads) if run.checkpointed else op.saved:
                first.setdefault(id(storage), index)
        for storage in run.block.leaves:
            first.setdefault(id(storage), index)
    for index, run in enumerate(runs):
        if run.checkpointed:  # what it leaves behind goes with the first layer
            first |= {id(storage): min(_start(runs, index) + 1, first[id(storage)]) for storage in run.block.left}
    return first


def _last_reader(runs: list[Run], index: int, holder: int) -> int:
    """The run whose backward is the last that needs what run `index` shares; a checkpointed layer makes it anew for itself.

    `holder`: the first run that holds it, such as the first layer with a window of a mask for windows.
    """
    run = runs[index]
    return min(index + 1, len(runs) - 1) if run.layered and run.checkpointed else max(_start(runs, index), holder)


def _start(runs: list[Run], index: int) -> int:
    """The block before the layers that a run is one of, or the run itself."""
    while runs[index].layered:
        index -= 1
    return index


def _held_entry(runs: list[Run], index: int) -> Storage | None:
    """What enters a stack's first layer, where that layer does not save it.

    A variable of the model's forward holds it to its end, or an op of the block before saved it for its own backward. The walk
    of that layer lets it go with its other input, so it is born again after it.
    """
    block = runs[index].block
    if runs[index].layered or index + 1 == len(runs) or block.exit is None or not block.exit_held:
        return None
    after = runs[index + 1]
    storage = block.exit.storage
    if not after.layered or (after.checkpointed and not after.reversible):
        return None
    saved = not after.reversible and any(storage in op.saved for op in after.block.ops)
    return None if saved else storage


def gradient_uses(network: Network) -> dict[int, int]:
    """How many gradients each parameter receives that is used outside the layers or in several of them.

    Layers alike are walked once, so their use counts once.
    """
    uses: dict[int, int] = {}
    ends = {id(g.of) for run in network.runs if not run.layered for op in run.block.ops for g in op.gradients}
    shared: dict[int, list[int]] = {}  # by block
    for run in network.runs:
        if id(run.block) not in shared:
            made = [gradient.of for op in run.block.ops for gradient in op.gradients]
            shared[id(run.block)] = [id(of) for of in made if of.name and ("*" not in of.name or id(of) in ends)]
        for key in shared[id(run.block)]:
            uses[key] = uses.get(key, 0) + 1
    return uses


def kept_outputs(run: Run) -> tuple[Storage, ...]:
    """What a loop that keeps the model's outputs, and with them the loss's graph, holds of one block between steps."""
    return run.block.outputs + run.block.leaves


def least_saved(network: Network) -> Size:
    """What layers that run again in the backward would save at least if they did not: bytes that stand when a forward is over.

    Nothing is counted of a stack's first layer that trains anything, nor of those before it: without a gradient of what enters
    them they save less, or nothing.
    """
    trained = {p.name for p in network.parameters if p.trainable}
    total: Size = 0
    flows = False
    for run in network.runs:
        if not run.layered:
            flows = False
        elif run.checkpointed:
            trains = any(name in trained for name in run.block.parameters)
            count = run.count if flows else (run.count - 1) * trains
            flows = flows or trains
            saved = {id(storage): storage for op in run.block.ops for storage in op.saved}
            gone = {id(storage) for op in run.block.ops for storage in op.discards}
            for storage in run.block.made(tuple([saved[key] for key in saved if key not in gone])):
                total = total + count * storage.nbytes
    return total
