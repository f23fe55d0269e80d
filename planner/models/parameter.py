"""A weight as the report and the ledger count it."""

from dataclasses import dataclass

from tuneplan.planner.graph.tensor import Tensor, elements


@dataclass(slots=True)
class Parameter:
    """A weight that the model or the method has, once for each of the layers alike.

    Attributes:
        name: name in the state dict, layers written as `*`.
        shape: of one of them.
        storage: format or dtype in which it is kept.
        trainable: whether it gets a gradient.
        adapter: whether the method brought it.
        stored_bytes: device bytes of one of them.
        count: how many layers have it.
        tensor: the tensor of the graph.
        saved: whether a checkpoint has it.
        idle: it is left to be trained, but has no part in the loss, so that it gets no gradient and no optimizer states.
        saved_bits: of an element in a checkpoint, where that is not what `storage` has; else 0.
        buffer: it is no parameter of the model and not counted as one.
        state_shape: of its optimizer states, where that is not its own.
        state_beside: shape of one more tensor that the optimizer keeps for it.
    """

    name: str
    shape: tuple[int, ...]
    storage: str
    trainable: bool
    adapter: bool
    stored_bytes: int
    count: int
    tensor: Tensor
    saved: bool = True
    buffer: bool = False
    state_shape: tuple[int, ...] = ()
    state_beside: tuple[int, ...] = ()
    saved_bits: float = 0
    idle: bool = False

    @property
    def numel(self) -> int:
        """Elements of all of them."""
        return elements(self.shape) * self.count
