"""The tape: the list of ops that one block records, with what autograd will keep and compute for each.

An op is resolved when it is recorded: whether its output needs a gradient is known then, so the tensors it saves and the
gradients its backward produces are plain data. The ledger only walks them.
"""

from dataclasses import dataclass

from tuneplan.planner.graph.tensor import ACTIVATIONS, Size, Storage, Tensor, tensor_bytes

Dims = tuple[Size, Size, Size]
"""Rows, columns and summed dimension of a matrix product."""


@dataclass(slots=True, eq=False)
class Gradient:
    """What the backward of an op does for one of its inputs.

    Attributes:
        of: the input that receives the gradient.
        nbytes: bytes of a fresh gradient; None when the output's gradient is passed on (a view, or an addition).
        view: it arrives as a view (transposed, or of more dimensions), which the first sum into it does not overwrite.
        given: a saved storage that becomes the gradient (a loss that computed it in the forward).
        piece: it waits, beside those of the node's other outputs, to be joined with them (`split`).
        scratch: bytes held only while this gradient is computed.
        flops: matrix-multiply FLOPs of this gradient.
        dims: rows, columns and summed dimension of its product; None for several products, or where they do not matter.
        moved: bytes read and written for this gradient; where it is not given, the output's gradient and this one.
        decoded: 4-bit weights made dense for it.
    """

    of: Tensor
    nbytes: Size | None
    scratch: Size | None = None
    flops: Size = 0
    moved: Size | None = None
    view: bool = False
    given: Storage | None = None
    piece: bool = False
    decoded: Size = 0
    dims: Dims | None = None
    launches: int = 1


@dataclass(slots=True, eq=False)
class Op:
    """One operator of the forward pass and its backward.

    Attributes:
        name: module path and operator, such as "mlp.up_proj.linear".
        reads: storages that must be alive while it runs.
        output: its result, or None for a marker that only keeps its inputs alive.
        allocates: the result's storage where it is fresh; None for a view.
        scratch: bytes held only while it runs.
        saved: storages of activations kept for the backward.
        saves: whether autograd keeps anything, parameters included.
        gradients: one entry for each input that needs a gradient.
        flops: matrix-multiply FLOPs of the forward.
        moved: bytes read and written by the forward.
        launches: kernels that the forward starts; 0 for views.
        workspace: bytes held only while its backward runs, whichever gradient is being computed.
        late: the same while its gradients are brought to their shapes and dtypes, after its own work.
        discards: storages saved by ops whose graph goes here, before any backward.
        pieces: how many storages of one size its result is.
        spends: bytes and category of what an earlier block made and nothing refers to any more.
        pinned: storages that it keeps by itself, so that checkpointing does not free them: to the end of the backward.
        decoded: 4-bit weights that its forward makes dense.
        computes: dtype of its matrix products, where it is not that of the output.
        dims: rows, columns and summed dimension of its product; None for several products, or where they do not matter.
    """

    name: str
    reads: tuple[Storage, ...]
    output: Tensor | None = None
    allocates: Storage | None = None
    scratch: Size | None = None
    saved: tuple[Storage, ...] = ()
    saves: bool = False
    gradients: tuple[Gradient, ...] = ()
    flops: Size = 0
    moved: Size = 0
    launches: int = 1
    workspace: Size | None = None
    late: Size | None = None
    discards: tuple[Storage, ...] = ()
    pinned: tuple[Storage, ...] = ()
    pieces: int = 1
    spends: tuple[tuple[Size, int], ...] = ()
    decoded: Size = 0
    computes: str = ""
    dims: Dims | None = None


class Tape:
    """Records the ops of one block.

    Attributes:
        ops: what was recorded so far.
        scope: prefix of the names of ops, such as "mlp.up_proj".
        category: what fresh tensors are for (an index of CATEGORIES).
        outputs: storages that the model's output object holds: logits, key/value cache.
        autocast: dtype to which CUDA autocast casts the inputs of matrix products; "" without autocast.
        cached: storages that autocast's cache holds until the forward ends: casts of trained fp32 weights.
        side: tensors made here whose gradients come from other blocks, bytes of such a gradient, and their number.
        held: storages that a variable of the code around the model holds until the forward is over.
        handed: storages that later blocks let go (`Op.spends`).
        parameters: names of the weights that the block being recorded uses, in the order of their first use.
        passed: storages that the next block reads besides this one's exit.
        logits: of another model, which are added to this one's.
    """

    def __init__(self, autocast: str = "") -> None:
        """`autocast`: see the attribute."""
        self.ops: list[Op] = []
        self.scope = ""
        self.category = ACTIVATIONS
        self.outputs: list[Storage] = []
        self.autocast = autocast
        self.cached: list[Storage] = []
        self.side: list[tuple[Tensor, Size, int]] = []
        self.held: list[Storage] = []
        self.handed: list[Storage] = []
        self.parameters: dict[str, None] = {}
        self.passed: list[Storage] = []
        self.logits: Tensor | None = None

    def fresh(self, shape: tuple[Size, ...], dtype: str, requires_grad: bool) -> Tensor:
        """A new tensor in a new storage."""
        return Tensor(Storage(tensor_bytes(shape, dtype), self.category), shape, dtype, requires_grad)

    def record(
        self,
        kind: str,
        inputs: tuple[Tensor, ...],
        output: Tensor,
        *,
        saved: tuple[Tensor, ...] = (),
        gradients: tuple[Gradient, ...] = (),
        scratch: Size | None = None,
        flops: Size = 0,
        moved: Size | None = None,
        workspace: Size | None = None,
        late: Size | None = None,
        dims: Dims | None = None,
    ) -> Tensor:
        """Append an op with a fresh output; what it saves and computes backward counts only if a gradient is needed."""
        if not output.requires_grad:
            saved, gradients = (), ()
        if moved is None:
            moved = output.nbytes
            for tensor in inputs:
                moved = moved + tensor.nbytes
        self.ops.append(
            Op(
                name=f"{self.scope}.{kind}" if self.scope else kind,
                reads=tuple([tensor.storage for tensor in inputs]),
                output=output,
                allocates=output.storage,
                scratch=scratch,
                saved=tuple([tensor.storage for tensor in saved if not tensor.name]),
                saves=bool(saved),
                gradients=tuple([_with_traffic(g, output) for g in gradients if g.of.requires_grad]),
                flops=flops,
                moved=moved,
                workspace=workspace,
                late=late,
                dims=dims,
            )
        )
        return output

    def view(self, kind: str, x: Tensor, shape: tuple[Size, ...]) -> Tensor:
        """The same storage seen with another shape; its gradient is a view of the output's gradient."""
        output = Tensor(x.storage, shape, x.dtype, x.requires_grad)
        gradients = (Gradient(x, None, view=True),) if x.requires_grad else ()
        self.ops.append(Op(kind, (x.storage,), output, gradients=gradients, launches=0))
        return output

    def append(self, other: "Tape") -> None:
        """Another tape's ops follow, as if they had been recorded here."""
        self.ops += other.ops
        self.parameters |= other.parameters
        for name in ("outputs", "cached", "side", "held", "handed", "passed"):
            getattr(self, name).extend(getattr(other, name))

    def save(self, *tensors: Tensor) -> None:
        """The op before saves these, in a graph that nobody will go back through; `discard` ends it."""
        self.ops[-1].saved = tuple([tensor.storage for tensor in tensors if not tensor.name])

    def discard(self, *tensors: Tensor) -> None:
        """The graph that saved these tensors goes with its last Python reference."""
        storages = tuple([tensor.storage for tensor in tensors])
        self.ops.append(Op("discard", (), launches=0, discards=storages))

    def hold(self, *tensors: Tensor) -> None:
        """Keep tensors alive up to here, as a local variable of the model's Python code does."""
        self.ops.append(Op("hold", tuple([tensor.storage for tensor in tensors]), launches=0))


def _with_traffic(gradient: Gradient, output: Tensor) -> Gradient:
    """Fill in `Gradient.moved` of an elementwise kernel."""
    if gradient.moved is None:
        gradient.moved = 0 if gradient.nbytes is None or gradient.given is not None else gradient.nbytes + output.nbytes
    return gradient
