"""The workbench on which a family assembles its model: weights, modules and blocks under one method and one run's settings."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import linear, linear_4bit, linear_8bit, scales_bytes
from tuneplan.planner.graph.tape import Gradient, Tape
from tuneplan.planner.graph.tensor import WEIGHTS, Size, Storage, Tensor, elements
from tuneplan.planner.methods.formats import QUANTIZED, kernel, stored_bytes
from tuneplan.planner.methods.method import Method
from tuneplan.planner.methods.part import CLASSIFIER, Part, Weight, numbered
from tuneplan.planner.models.parameter import Parameter
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.training.settings import Settings


@dataclass(slots=True)
class Site:
    """A linear module as a part meets it.

    Attributes:
        module: name within its block, such as "self_attn.q_proj".
        weight: `(out_features, in_features)`.
        bias: `(out_features,)` or None.
        form: the kind of module that keeps the weight quantized (`formats.kernel`), "" where it is dense.
        stored_bytes: device bytes of the weight with its scales.
        apart: the dense module's code adds the bias to the finished product.
    """

    module: str
    weight: Tensor
    bias: Tensor | None
    form: str
    stored_bytes: int
    apart: bool = False


Base: TypeAlias = Callable[..., Tensor]
"""Records a linear module: `base(x)`, or `base(x, weight)` with another weight in place of the module's own."""


class Assembly:
    """Collects parameters and records ops; a family calls it as its Hugging Face code calls torch.

    Attributes:
        method: the parts.
        settings: the run.
        spec: the model's dimensions.
        rotary: cosines and sines of the positions, where the model has them.
        prefix: keys and values that a part puts before those of each layer, once the first block has made them.
        layers_share: what the family's layers share, once the first block is recorded.
        side_rotary: the same tables as `rotary` for a narrower network beside the layers, where there is one.
        attention_input: what the attention being recorded got.
        streams: hidden states of the layer being recorded, where they run in two streams.
        beside: state of a network beside the layers after the block before; None without one.
        tape: of the block being recorded.
        parameters: of all blocks so far.
        met: names of those that the block being recorded has used.
        notes: what the report must say, such as which attention kernel runs and why.
        linears: linear modules that a method may adapt, by path, layers written as `*`.
        norms: normalizations, likewise.
        layer: index of the decoder layer being recorded (the first of those alike), None outside the layers.
        extra_saved_bytes: what a checkpoint has that is no parameter.
        stacks: parameters of three dimensions that hold the matrices of all experts.
        wrapped: tensors that a wrapper around the module being recorded holds until the module is done.
        router_logits: of each router of the block being recorded, where the model's output keeps them.
        routers: the same of all layers so far, and of how many layers alike.
        heads: weights of the classifier.
        largest: largest sizes that parts met so far, by a name of theirs; see `meet`.
        inside: what `model.` stands for at the start of a name outside the layers, where a text model is part of another.
        words: embedded tokens that wait for what another stack makes of images.
        words_held: something holds them when images have been put among them.
        given: gives what enters the text model where it is not embedded tokens alone.
    """

    def __init__(self, method: Method, settings: Settings, spec: ModelSpec) -> None:
        self.method = method
        self.settings = settings
        self.spec = spec
        self.rotary: tuple[Tensor, ...] = ()
        self.prefix: tuple[Tensor, Tensor] | None = None
        self.layers_share: tuple[Tensor, ...] = ()
        self.side_rotary: tuple[Tensor, ...] = ()
        self.attention_input: Tensor | None = None
        self.streams: tuple[Tensor, ...] = ()
        self.beside: Tensor | None = None
        self.tape = Tape()
        self.parameters: dict[str, Parameter] = {}
        self.met: set[str] = set()
        self.notes: dict[str, str] = {}
        self._prefix = ""
        self._count = 1
        self.linears: set[str] = set()
        self.norms: set[str] = set()
        self.layer: int | None = None
        self.extra_saved_bytes = 0
        self.stacks: set[str] = set()
        self.router_logits: list[Tensor] = []
        self.routers: list[tuple[Tensor, int]] = []
        self.wrapped: list[Tensor] = []
        self.largest: dict[str, int] = {}
        self.heads: list[str] = []
        self.inside = ""
        self.given: Callable[[], Tensor] | None = None
        self.words: Tensor | None = None
        self.words_held = False

    def begin(self, prefix: str, count: int, layer: int | None = None) -> Tape:
        """Start a block whose weights are named `prefix` + module and exist `count` times."""
        self.tape = Tape(self.settings.autocast)
        self.met = set()
        self._prefix = prefix
        self._count = count
        self.layer = layer
        self.router_logits = []
        return self.tape

    def within(self, name: str, spec: ModelSpec, method: Method) -> "Assembly":
        """An assembly for another network whose ops are part of the block being recorded; `adopt` takes over its weights.

        Args:
            name: under which its weights stand within the block.
            spec: its dimensions.
            method: what is trained of it.
        """
        inner = Assembly(method, self.settings, spec)
        inner.tape, inner.layer, inner.rotary = self.tape, self.layer, self.rotary
        inner._prefix, inner._count = f"{self._prefix}{name}.", self._count
        return inner

    def adopt(self, inner: "Assembly") -> None:
        """Count the weights of a network of `within` as brought by the method."""
        for name, parameter in inner.parameters.items():
            parameter.adapter = True
            self.parameters.setdefault(name, parameter)
            self.met.add(name)

    def _named(self, name: str) -> str:
        """The whole name of a module or weight of the block being recorded, layers as `*`."""
        if self.inside and not self._prefix and name.startswith("model."):
            return self.inside + name.removeprefix("model.")
        return self._prefix + name

    def path(self, module: str) -> str:
        """The path in the model of a module of the block being recorded, its layer as a number."""
        return numbered(self._named(module), self.layer)

    def weight(
        self, module: str, shape: tuple[int, ...], kind: str, suffix: str = "weight", owner: str = "linear", stored: str = ""
    ) -> Tensor:
        """A weight of the base model; asking twice for one name gives one tensor (tied embeddings).

        `stored`: the dtype that it is kept in, whatever the method says.
        """
        name = self._named(f"{module}.{suffix}" if module else suffix)
        self.tape.parameters[name] = None
        self.met.add(name)
        known = self.parameters.get(name)
        if known is not None:
            return known.tensor
        if kind == CLASSIFIER:
            self.heads.append(name)
        weight = Weight(name, kind, module, self.layer, self.spec.num_hidden_layers, owner)
        dtype = self.settings.dtype
        storage = stored or self.method.storage(weight, dtype)
        tensor = self._declare(name, shape, storage, self.method.trains(weight))
        for part in self.method.parts:
            changed, beside = part.state_shape(shape, kind)
            if beside:
                self.parameters[name].state_shape, self.parameters[name].state_beside = changed, beside
        return tensor

    def embedding_weight(self, module: str, width: int = 0) -> Tensor:
        """The matrix that embeds tokens, with whatever the method does to it. Shape: `(vocabulary, width or hidden)`."""
        weight = self.weight(module, (self.spec.vocab_size, width or self.spec.hidden_size), "embedding")
        for part in self.method.parts:
            weight = part.embedding_weight(self, weight)
        return weight

    def stacked_weight(
        self, module: str, name: str, shape: tuple[int, ...], transposed: bool = False, kind: str = "expert"
    ) -> Callable[[], Tensor]:
        """A weight that no linear module holds, with whatever the method does to it, made when it is asked for.

        Args:
            module: what holds it.
            name: within the module.
            shape: `(experts, out, in)` or, transposed, `(experts, in, out)`; `(out, in)` for a router.
            transposed: see shape.
            kind: see `Weight`.
        """
        weight = self.weight(module, shape, kind, name)
        self.stacks.add(f"{module}.{name}")

        def give() -> Tensor:
            return weight

        made: Callable[[], Tensor] = give
        for part in self.method.parts:
            made = part.stacked_weight(self, f"{module}.{name}", made, shape, transposed)
        return made

    def stored_dtype(self, name: str) -> str:
        """The dtype of a weight that the block being recorded has met already, by its name within the block."""
        return self.parameters[self._named(name)].tensor.dtype

    def weight_of(self, module: str) -> Tensor:
        """The weight of a module that the block being recorded has met already."""
        return self.parameters[self._named(f"{module}.weight")].tensor

    def has(self, module: str, suffix: str) -> bool:
        """Whether a module of the block being recorded has such a weight."""
        return self._named(f"{module}.{suffix}") in self.parameters

    def adapter(
        self, name: str, shape: tuple[int, ...], dtype: str, *, trained: bool = True, saved: bool = True, saved_bits: float = 0
    ) -> Tensor:
        """A weight that the method adds to the block being recorded.

        Args:
            name: within the block.
            shape: its dimensions.
            dtype: in which it is kept.
            trained: whether it gets a gradient.
            saved: whether a checkpoint has it.
            saved_bits: of an element in the checkpoint, 0 for those of `dtype`.
        """
        tensor = self._added(self._named(name), shape, dtype, trained, self._count, saved)
        self.parameters[tensor.name].saved_bits = saved_bits
        return tensor

    def buffer(self, name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
        """A tensor that the method keeps beside the weights of the block being recorded, and saves nowhere."""
        return self._added(self._named(name), shape, dtype, False, self._count, saved=False, buffer=True)

    def common(
        self, name: str, shape: tuple[int, ...], dtype: str, *, trained: bool = True, saved: bool = True, buffer: bool = False
    ) -> Tensor:
        """A weight or buffer that the method adds once, for all blocks; see `adapter`."""
        return self._added(name, shape, dtype, trained, 1, saved, buffer)

    def copy_frozen(self, parameter: Parameter) -> None:
        """Declare a frozen copy of a weight, in all layers that have it."""
        name = f"{parameter.name}.original"
        self._added(name, parameter.shape, parameter.storage, False, parameter.count, saved=False)

    def _added(
        self, name: str, shape: tuple[int, ...], dtype: str, trained: bool, count: int, saved: bool, buffer: bool = False
    ) -> Tensor:
        self.tape.parameters[name] = None
        self.met.add(name)
        known = self.parameters.get(name)
        if known is not None:
            return known.tensor
        tensor = Tensor(Storage(stored_bytes(elements(shape), dtype), WEIGHTS), shape, dtype, trained, name)
        size = tensor.storage.nbytes
        self.parameters[name] = Parameter(name, shape, dtype, trained, True, size, count, tensor, saved, buffer)
        return tensor

    def _declare(self, name: str, shape: tuple[int, ...], storage: str, trainable: bool) -> Tensor:
        size = stored_bytes(elements(shape), storage, shape[0] if shape else 1)
        dtype = self.settings.dtype if storage in QUANTIZED else storage
        tensor = Tensor(Storage(size, WEIGHTS), shape, dtype, trainable, name)
        self.parameters[name] = Parameter(name, shape, storage, trainable, False, size, self._count, tensor)
        return tensor

    def linear(
        self,
        x: Tensor,
        module: str,
        out_features: int,
        bias: bool = False,
        kind: str = "linear",
        conv1d: bool = False,
        kept: bool = False,
        apart: bool = False,
    ) -> Tensor:
        """A linear module, with whatever the method adds to it. Shapes: x `(..., in)` -> `(..., out_features)`.

        `conv1d`: transformers' `Conv1D`, which keeps its weight as `(in, out_features)` where it is not quantized.
        `kept`: transformers never quantizes it (`_keep_in_fp32_modules`).
        `apart`: the dense module's code adds the bias to the finished product.
        """
        tape = self.tape
        outer = tape.scope
        tape.scope = module
        dense = self.method.storage(Weight("", "norm", module), self.settings.dtype) if kept else ""
        weight = self.weight(module, (out_features, x.shape[-1]), kind, stored=dense)
        own = kind if kind == CLASSIFIER else "bias"
        if conv1d:
            self.parameters[self._named(f"{module}.weight")].shape = (x.shape[-1], out_features)
        parameter = self.parameters[self._named(f"{module}.weight")]
        # `Linear4bit.forward` of bitsandbytes replaces a bias of another dtype for good
        narrow = self.settings.dtype if kernel(parameter.storage) == "4bit" else ""
        offset = self.weight(module, (out_features,), own, "bias", stored=narrow) if bias else None
        site = Site(module, weight, offset, kernel(parameter.storage), parameter.stored_bytes, apart)
        run: Base = partial(self._plain, site)
        if kind == "linear":
            self.linears.add(self._named(module))
            for part in self.method.parts:
                run = partial(self._adapted, part, site, run)
        y = run(x)
        tape.hold(x)
        tape.scope = outer
        return y

    def meet(self, name: str, size: int) -> None:
        """Remember the largest size met, for what a part shares between modules and declares when all are known."""
        self.largest[name] = max(size, self.largest.get(name, 0))

    def shared(self, name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
        """A frozen tensor shared by modules, as one of them uses it; `common` declares it once."""
        return Tensor(Storage(0, WEIGHTS), shape, dtype, False, name)

    def dense_weight(self, site: Site, dtype: str) -> Tensor:
        """The module's weight as a dense tensor of a dtype: itself, a copy, or dequantized and copied."""
        tape = self.tape
        weight = site.weight
        if site.form:
            weight = tape.fresh(site.weight.shape, self.settings.dtype, False)
            tape.record("dequantize", (), weight, scratch=scales_bytes(weight.numel), moved=site.stored_bytes + weight.nbytes)
        return pw.cast(tape, pw.detached(weight), dtype)

    def _plain(self, site: Site, x: Tensor, weight: Tensor | None = None) -> Tensor:
        if weight is None and site.form == "4bit":
            return linear_4bit(self.tape, x, site.weight, site.bias, self.settings.dtype, site.stored_bytes)
        if weight is None and site.form == "8bit":
            pins = self.settings.gradient_checkpointing == "non-reentrant"
            return linear_8bit(self.tape, x, site.weight, site.bias, pins)
        if weight is None and site.form == "packed":
            weight = self.dense_weight(site, x.dtype)
            y = linear(self.tape, x, pw.detached(site.weight), site.bias)
            self.tape.hold(weight)
            return y
        given = site.weight if weight is None else weight
        if site.apart and site.bias is not None:
            return pw.add(self.tape, linear(self.tape, x, given, None), site.bias)
        return linear(self.tape, x, given, site.bias)

    def _adapted(self, part: Part, site: Site, base: Base, x: Tensor, weight: Tensor | None = None) -> Tensor:
        return part.linear(self, site, x, base if weight is None else partial(base, weight=weight))

    def rms_norm(
        self, x: Tensor, module: str, run: Callable[[Tape, Tensor, Tensor], Tensor] = pw.rms_norm, heads: int = 0
    ) -> Tensor:
        """RMS normalization over the last dimension, with a weight (of its own for each of `heads`), as `run` writes it."""
        shape = (heads, x.shape[-1]) if heads else (x.shape[-1],)
        return self._norm(module, lambda: run(self.tape, x, self.weight(module, shape, "norm")))

    def layer_norm(self, x: Tensor, module: str, bias: bool = True) -> Tensor:
        """`nn.LayerNorm` over the last dimension, with weight and, where it has one, bias."""

        def run() -> Tensor:
            weight = self.weight(module, (x.shape[-1],), "norm")
            offset = self.weight(module, (x.shape[-1],), "bias", "bias", "norm") if bias else None
            return pw.layer_norm(self.tape, x, weight, offset)

        return self._norm(module, run)

    def _norm(self, module: str, run: Callable[[], Tensor]) -> Tensor:
        tape = self.tape
        outer = tape.scope
        tape.scope = module
        self.norms.add(self._named(module))
        y = run()
        for part in self.method.parts:
            y = part.normed(self, module, y)
        tape.scope = outer
        return y

    def join(self, kind: str, first: Tensor, second: Tensor, shape: tuple[Size, ...]) -> Tensor:
        """Two tensors joined (`torch.cat`) in a fresh one; their gradients are views of its gradient."""
        out = self.tape.fresh(shape, first.dtype, first.requires_grad or second.requires_grad)
        gradients = (Gradient(first, None), Gradient(second, None))
        return self.tape.record(kind, (first, second), out, gradients=gradients)

    def submodule(self, name: str, x: Tensor, residual: Tensor, y: Tensor) -> Tensor:
        """The output of `self_attn` or `mlp` with whatever the method adds to it; see `Part.submodule`."""
        for part in self.method.parts:
            y = part.submodule(self, name, x, residual, y)
        return y

    @property
    def token_shape(self) -> tuple[Size, Size]:
        """(sequences, length)."""
        return (self.settings.sequences, self.settings.seq_len)
