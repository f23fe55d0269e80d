"""The ledger: walks the blocks of a step under autograd's rules and says what is live at each moment.

Forward: a storage dies with its last Python reference unless an op saved it. Backward: ops in reverse order; while a node
runs its output's gradient, everything it saved and the gradients it makes are alive; then the saved tensors go, and gradients
of one tensor are added in place if the earlier one has no other user and is no view (torch/csrc/autograd/engine.cpp,
input_buffer.cpp).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tuneplan.planner.graph.block import Block, recomputed
from tuneplan.planner.graph.meter import Meter, Segment, join
from tuneplan.planner.graph.tape import Gradient, Op
from tuneplan.planner.graph.tensor import GRADIENTS, LOGITS, TEMPORARY, Size, Storage, Tensor, round_block


@dataclass(slots=True)
class _Pending:
    """A gradient on its way.

    Attributes:
        nbytes: its size.
        category: of CATEGORIES, by index.
        users: how many tensors share its storage.
        pieces: of how many pieces it is.
        beside: gradients of the other outputs of the same node, which are used together with it.
        view: it is a view of another tensor, so that nothing is added to it in place.
    """

    nbytes: Size
    category: int
    users: int = 1
    pieces: int = 1
    beside: "list[_Pending] | None" = None
    view: bool = False


@dataclass(slots=True)
class Shared:
    """What the backward of one block must know of the others.

    Attributes:
        accumulating: parameters already hold gradients (gradient accumulation), so each new one is added and freed; None for both
            kinds of backward at once, which a meter of arrays tells apart.
        uses: how many gradients each parameter (by id) will still receive; more than one for a tied embedding, whose node
            waits for all of them.
        waiting: parameters (by id) that received some of them already, and whether their sum is still a view.
        fused_update: a gradient is used and freed when it is complete.
        crossing: gradients on their way to tensors (by id) that other blocks made; see `Tensor.crosses`.
        apart: one walk is not enough for both kinds, because a gradient that a parameter keeps is used elsewhere too.
    """

    accumulating: bool | None
    uses: dict[int, int]
    waiting: dict[int, bool] = field(default_factory=dict)
    fused_update: bool = False
    crossing: dict[int, _Pending] = field(default_factory=dict)
    apart: bool = False


class Walk:
    """One block, walked forward and then backward, with the references that autograd holds in between."""

    def __init__(self, block: Block, meter: Callable[[], Meter] = Meter) -> None:
        self.block = block
        self._meter = meter
        self._saved: dict[int, int] = {}
        self._released: set[int] = set()
        self.parts: tuple[Segment, Segment] | None = None
        """Of a last block's backward: the loss, and from its last linear (the head) on; None where there is no such linear."""
        self.adding: Segment | None = None
        """The backward that finds gradients, where both kinds were walked at once and they differ."""
        self.adding_parts: tuple[Segment, Segment] | None = None

    def copy(self) -> "Walk":
        """The same at this moment, to go on from here once more."""
        other = Walk(self.block, self._meter)
        other._saved, other._released = self._saved.copy(), self._released.copy()
        return other

    def forward(self, keep: bool = True, rebuilt: bool = False) -> Segment:
        """The forward pass; leaves behind what is saved and the exit.

        Args:
            keep: whether autograd saves tensors; if not (a checkpointed region) only the entry stays.
            rebuilt: the entry goes too, because the backward computes it from the exit (a reversible layer).
        """
        meter = self._meter()
        self._run(len(self.block.ops), keep, meter)
        if (keep or rebuilt) and self.block.entry is not None and self.block.entry_held:
            if self.block.entries_kept:
                self._released.add(id(self.block.entry.storage))
            else:
                self._unreference(self.block.entry.storage, meter)
        for storage in self.block.beside:
            self._unreference(storage, meter)
        return meter.segment()

    def release(self, keep_outputs: bool = False, held: Iterable[int] = ()) -> Segment:
        """The forward is over: autocast's cache goes, and the model's output object unless the loop keeps it.

        Autograd may still hold what was in them. `held`: storages (by id) that other blocks hold.
        """
        meter = self._meter()
        for storage in self.block.cached if keep_outputs else (*self.block.outputs, *self.block.cached):
            if id(storage) not in held:
                self._unreference(storage, meter)
        return meter.segment()

    def backward(self, shared: Shared, checkpointing: str = "off", parted: bool = False) -> Segment:
        """The backward pass: starts with the gradient of the exit alive, ends with that of the entry alive.

        Where `shared` asks for both kinds of it, this is the one that finds no gradients, and `adding` the other.

        Args:
            shared: state of the whole backward.
            checkpointing: "off"; "non-reentrant": the forward runs again when the first saved tensor is asked for, and stops
                early; "reentrant": it runs again whole, and its output and the incoming gradient are held to the end;
                "reversible": the same, after the entry was computed from the exit; it stays for the block before.
            parted: note `parts`.
        """
        meter = self._meter()
        block = self.block
        reversible = checkpointing == "reversible"
        reentrant = checkpointing == "reentrant" or reversible
        start = block.exit if block.exit is not None else _last_output(block)
        for key, count in block.repeated.items():
            shared.uses[key] = count
            shared.waiting.pop(key, None)
        own = {id(op.output) for op in block.ops if op.output is not None and op.output.crosses}
        pending = _made_elsewhere(block, shared, own)
        if start is None or not (start.requires_grad or pending):
            if checkpointing != "off" and block.entry is not None:
                meter.drop(block.entry.storage.nbytes, block.entry.storage.category)
            return meter.segment()
        incoming = _Pending(round_block(start.nbytes), TEMPORARY, users=2 if reentrant else 1)
        if block.exit is None:
            meter.add(incoming.nbytes, TEMPORARY)
        if start.requires_grad:
            pending[id(start)] = incoming
        waiting = checkpointing == "non-reentrant"
        for storage in block.left_here() if waiting else ():
            self._saved[id(storage)] = self._saved.get(id(storage), 0) + 1
        if reversible and block.entry is not None:
            meter.add(incoming.nbytes, TEMPORARY)
            meter.add(block.entry.storage.nbytes, block.entry.storage.category)
        if reentrant:
            self._run(len(block.ops), True, meter, again=True)
            for storage in block.cached:
                self._unreference(storage, meter)
        head, loss = _head(block) if parted else None, None
        for op in reversed(block.ops):
            if op.output is None or not op.output.requires_grad:
                continue
            if op is head:
                loss, meter = meter, self._meter()
            if waiting and op.saves:
                self._recompute(meter)
                waiting = False
            grad = pending.pop(id(op.output), None)
            made = self._node(op, grad, meter, checkpointing == "non-reentrant") if grad is not None else []
            self._release(op.saved, meter)
            if grad is not None:
                grad.users += op.output.storage in block.early_leaves
                _leave(grad, meter)
                _deliver(op, made, pending, shared, meter, own)
        if reentrant:
            _leave(incoming, meter)
            meter.drop(start.storage.nbytes, start.storage.category)
            for storage in block.made(block.carried):  # outputs of the forward that ran again
                self._unreference(storage, meter)
        if reversible:  # the last layer's output and its gradient stay until all layers are done, beside this one's
            meter.drop(incoming.nbytes, TEMPORARY)
            meter.drop(start.storage.nbytes, start.storage.category)
        if checkpointing != "off" and not reversible and block.entry is not None:
            meter.drop(block.entry.storage.nbytes, block.entry.storage.category)
        return self._ended(loss, meter, shared)

    def _ended(self, loss: Meter | None, rest: Meter, shared: Shared) -> Segment:
        """The backward, in its parts and as one; for both kinds of it, if both were walked."""
        self.parts, found = _whole(loss, rest, False)
        if shared.accumulating is None:
            self.adding_parts, self.adding = _whole(loss, rest, True)
        return found

    def _recompute(self, meter: Meter) -> None:
        """The forward of a checkpointed region again; then every local variable of the model's code goes at once."""
        ops = self.block.ops
        stop = recomputed(ops)
        last = max(index for index, op in enumerate(ops) if op.saves)
        self._run(stop, True, meter, again=True)
        for storage in ops[last].saved:
            if stop == last:
                self._saved[id(storage)] = self._saved.get(id(storage), 0) + 1
        for op in ops[:stop]:
            if op.allocates is not None and id(op.allocates) not in self._released:
                self._unreference(op.allocates, meter)
        for op in ops[stop:]:
            self._release(op.discards, meter)
        for op in ops[:stop]:
            self._release(op.pinned, meter)

    def _run(self, stop: int, keep: bool, meter: Meter, again: bool = False) -> None:
        """Ops up to `stop`. `again`: in the backward, where no output object of the model holds anything."""
        saved = self._saved
        frees = self.block.frees
        ends = self.block.output_ends if again else {}
        for index, op in enumerate(self.block.ops[:stop]):
            meter.op = op.name
            if op.allocates is not None:
                for _ in range(op.pieces):
                    meter.add(op.allocates.nbytes // op.pieces, op.allocates.category)
            for size_bytes, category in op.spends:
                meter.drop(size_bytes, category)
            if op.scratch is not None:
                meter.touch(op.scratch)
            if keep:
                for storage in op.saved:
                    saved[id(storage)] = saved.get(id(storage), 0) + 1
                if op.discards:
                    self._release(op.discards, meter)
            for storage in op.pinned:
                saved[id(storage)] = saved.get(id(storage), 0) + 1
            for storage in (*frees[index], *ends[index]) if index in ends else frees[index]:
                self._unreference(storage, meter)

    def _unreference(self, storage: Storage, meter: Meter) -> None:
        """The last Python reference goes; the bytes go too unless autograd holds the storage."""
        self._released.add(id(storage))
        if id(storage) not in self._saved:
            meter.drop(storage.nbytes, storage.category)

    def _node(self, op: Op, grad: _Pending, meter: Meter, unpacked: bool) -> list[tuple[Gradient, _Pending]]:
        """Run one node: its gradients are born while its output's gradient and all it saved are alive.

        `unpacked`: hooks of checkpointing give the node its saved tensors (`_checkpoint_hook` of torch/utils/checkpoint.py), so
        that they are gone when its gradients are summed and cast.
        """
        meter.op = f"{op.name} (backward)"
        made: list[tuple[Gradient, _Pending]] = []
        for gradient in op.gradients:
            if gradient.given is not None:
                self._saved[id(gradient.given)] += 1
                made.append((gradient, _Pending(gradient.given.nbytes, gradient.given.category)))
            elif gradient.nbytes is None:
                grad.users += 1
                grad.view = grad.view or gradient.view
                made.append((gradient, grad))
            else:
                category = gradient_category(gradient.of)
                meter.add(gradient.nbytes, category)
                made.append((gradient, _Pending(gradient.nbytes, category, view=gradient.view)))
            if gradient.scratch is not None:
                meter.touch(gradient.scratch)
        if op.workspace is not None:
            meter.touch(op.workspace)
        if op.late is not None:
            gone: Size = 0
            for storage in op.saved if unpacked else ():
                if self._saved[id(storage)] == 1 and id(storage) in self._released:
                    gone = gone + storage.nbytes
            left = op.late - gone
            meter.touch(left * (left > 0))
        return made

    def _release(self, saved: Iterable[Storage], meter: Meter) -> None:
        for storage in saved:
            key = id(storage)
            self._saved[key] -= 1
            if self._saved[key] == 0:
                del self._saved[key]
                if key in self._released:
                    meter.drop(storage.nbytes, storage.category)


def _whole(loss: Meter | None, rest: Meter, accumulating: bool) -> tuple[tuple[Segment, Segment] | None, Segment]:
    """A backward in two parts, if it has them, and as one."""
    after = rest.segment(accumulating)
    if loss is None:
        return None, after
    before = loss.segment(accumulating)
    return (before, after), join(before, after)


def _made_elsewhere(block: Block, shared: Shared, own: set[int]) -> dict[int, _Pending]:
    """Gradients of tensors of this block that other blocks made. `own`: tensors (by id) that others read too."""
    pending = {id(tensor): _Pending(nbytes * pieces, TEMPORARY, pieces=pieces) for tensor, nbytes, pieces in block.side}
    pending.update({key: shared.crossing.pop(key) for key in own if key in shared.crossing})
    return pending


def gradient_category(of: Tensor) -> int:
    """What the gradient of a tensor is counted as: a parameter's is a gradient, that of logits is part of the logits."""
    if of.name:
        return GRADIENTS
    return LOGITS if of.storage.category == LOGITS else TEMPORARY


def _deliver(
    op: Op, made: list[tuple[Gradient, _Pending]], pending: dict[int, _Pending], shared: Shared, meter: Meter, own: set[int]
) -> None:
    """Hand the gradients of a node on. `own`: tensors (by id) of this block that others read too."""
    for gradient, new in made:
        if gradient.of.name:
            _to_parameter(gradient, new, shared, meter)
            continue
        waiting = shared.crossing if gradient.of.crosses and id(gradient.of) not in own else pending
        old = waiting.get(id(gradient.of))
        if gradient.piece and old is not None and old.beside is not None:
            old.beside.append(new)
        elif gradient.piece:
            pending[id(gradient.of)] = _Pending(0, new.category, beside=[new])
        elif old is None:
            waiting[id(gradient.of)] = new
        elif old.users == 1 and not old.view:
            _leave(new, meter)
        else:
            meter.op = f"{op.name} (sum of gradients)"
            total = _Pending(round_block(gradient.of.nbytes), gradient_category(gradient.of))
            meter.add(total.nbytes, total.category)
            waiting[id(gradient.of)] = total
            _leave(old, meter)
            _leave(new, meter)


def _to_parameter(gradient: Gradient, new: _Pending, shared: Shared, meter: Meter) -> None:
    """`AccumulateGrad`: runs when all gradients of the parameter are there, the later ones added in place to the first.

    The first sum into a transposed view, which a linear layer's gradient is, goes to a fresh tensor. The sum becomes the
    parameter's gradient, or is added to the one it has and freed.
    """
    key = id(gradient.of)
    shared.uses[key] = shared.uses.get(key, 1) - 1
    if key in shared.waiting:
        if shared.waiting[key]:
            meter.add(new.nbytes, GRADIENTS)
            meter.drop(new.nbytes, GRADIENTS)
            shared.waiting[key] = False
        _leave(new, meter)
        if shared.uses[key] <= 0 and (shared.fused_update or shared.accumulating is not False):
            meter.only = True if shared.accumulating is None and not shared.fused_update else None
            meter.drop(new.nbytes, GRADIENTS)
            meter.only = None
        return
    if shared.uses[key] > 0:
        shared.waiting[key] = gradient.view
    elif shared.accumulating:
        _leave(new, meter)
        return
    elif shared.accumulating is None:
        shared.apart = shared.apart or new.users > 1 or new.pieces > 1 or new.beside is not None
        meter.only = True
        meter.drop(new.nbytes, new.category)
        meter.only = False
    if new.category != GRADIENTS:
        meter.drop(new.nbytes, new.category)
        meter.add(new.nbytes, GRADIENTS)
    if shared.fused_update and shared.uses[key] <= 0:
        meter.drop(new.nbytes, GRADIENTS)
    meter.only = None


def _leave(grad: _Pending, meter: Meter) -> None:
    grad.users -= 1
    if grad.users == 0:
        for _ in range(grad.pieces if grad.beside is None else 0):
            meter.drop(grad.nbytes // grad.pieces, grad.category)
        for other in grad.beside or ():
            _leave(other, meter)


def _head(block: Block) -> Op | None:
    """The last linear of a last block."""
    linears = [op for op in block.ops if op.name.endswith(".linear") and op.output is not None and op.output.requires_grad]
    return linears[-1] if linears and block.exit is None else None


def _last_output(block: Block) -> Tensor | None:
    """The loss: the last output that needs a gradient in a block without an exit."""
    outputs = [op.output for op in block.ops if op.output is not None and op.output.requires_grad]
    return outputs[-1] if outputs else None
