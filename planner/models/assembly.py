"""The workbench on which a family assembles its model: weights, modules and blocks under one method and one run's settings."""

from dataclasses import dataclass

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import linear, linear_4bit
from tuneplan.planner.graph.tape import Tape
from tuneplan.planner.graph.tensor import WEIGHTS, Size, Storage, Tensor, elements
from tuneplan.planner.methods.formats import BLOCK_FORMATS, stored_bytes
from tuneplan.planner.methods.method import Method
from tuneplan.planner.methods.part import Weight
from tuneplan.planner.training.settings import Settings


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
    """

    name: str
    shape: tuple[int, ...]
    storage: str
    trainable: bool
    adapter: bool
    stored_bytes: int
    count: int
    tensor: Tensor

    @property
    def numel(self) -> int:
        """Elements of all of them."""
        return elements(self.shape) * self.count


class Assembly:
    """Collects parameters and records ops; a family calls it as its Hugging Face code calls torch.

    Attributes:
        method: the parts.
        settings: the run.
        tape: of the block being recorded.
        parameters: of all blocks so far.
        notes: what the report must say, such as which attention kernel runs and why.
        linears: linear modules that a method may adapt.
    """

    def __init__(self, method: Method, settings: Settings) -> None:
        self.method = method
        self.settings = settings
        self.tape = Tape()
        self.parameters: dict[str, Parameter] = {}
        self.notes: dict[str, str] = {}
        self._prefix = ""
        self._count = 1
        self.linears: set[str] = set()

    def begin(self, prefix: str, count: int) -> Tape:
        """Start a block whose weights are named `prefix` + module and exist `count` times."""
        self.tape = Tape(self.settings.autocast)
        self._prefix = prefix
        self._count = count
        return self.tape

    def weight(self, module: str, shape: tuple[int, ...], kind: str, suffix: str = "weight") -> Tensor:
        """A weight of the base model; asking twice for one name gives one tensor (tied embeddings)."""
        name = f"{self._prefix}{module}.{suffix}"
        known = self.parameters.get(name)
        if known is not None:
            return known.tensor
        weight = Weight(name, kind, module)
        dtype = self.settings.dtype
        storage = self.method.storage(weight, dtype)
        return self._declare(name, shape, storage, self.method.trains(weight), adapter=False)

    def adapter(self, name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
        """A trained weight that the method adds to the block being recorded."""
        full = f"{self._prefix}{name}"
        if full in self.parameters:
            return self.parameters[full].tensor
        return self._declare(full, shape, dtype, trainable=True, adapter=True)

    def _declare(self, name: str, shape: tuple[int, ...], storage: str, trainable: bool, adapter: bool) -> Tensor:
        size = stored_bytes(elements(shape), storage)
        dtype = self.settings.dtype if storage in BLOCK_FORMATS else storage
        tensor = Tensor(Storage(size, WEIGHTS), shape, dtype, trainable, name)
        self.parameters[name] = Parameter(name, shape, storage, trainable, adapter, size, self._count, tensor)
        return tensor

    def is_quantized(self, module: str) -> bool:
        """Whether a linear module of this block is stored in a block format."""
        return self.parameters[f"{self._prefix}{module}.weight"].storage in BLOCK_FORMATS

    def linear(self, x: Tensor, module: str, out_features: int, bias: bool = False, kind: str = "linear") -> Tensor:
        """A linear module, with whatever the method adds to it. Shapes: x `(..., in)` -> `(..., out_features)`."""
        tape = self.tape
        outer = tape.scope
        tape.scope = module
        weight = self.weight(module, (out_features, x.shape[-1]), kind)
        offset = self.weight(module, (out_features,), "bias", "bias") if bias else None
        parameter = self.parameters[f"{self._prefix}{module}.weight"]
        if parameter.storage in BLOCK_FORMATS:
            y = linear_4bit(tape, x, weight, offset, self.settings.dtype, parameter.stored_bytes)
        else:
            y = linear(tape, x, weight, offset)
        if kind == "linear":
            self.linears.add(module)
            for part in self.method.parts:
                y = part.linear(self, module, weight, x, y)
        tape.hold(x)
        tape.scope = outer
        return y

    def rms_norm(self, x: Tensor, module: str) -> Tensor:
        """RMS normalization over the last dimension, with a weight."""
        tape = self.tape
        outer = tape.scope
        tape.scope = module
        y = pw.rms_norm(tape, x, self.weight(module, (x.shape[-1],), "norm"))
        tape.scope = outer
        return y

    @property
    def token_shape(self) -> tuple[Size, Size]:
        """(micro-batch, length)."""
        return (self.settings.micro_batch_size, self.settings.seq_len)
