"""A model under a method: runs of alike blocks, from token ids to the loss."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tuneplan.planner.graph.block import Block
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.methods.formats import QUANTIZED
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models.assembly import Assembly, Parameter
from tuneplan.planner.models.registry import family
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.training.settings import Settings


@dataclass(slots=True)
class Run:
    """`count` blocks alike, one after the other. `layered`: they are layers, not what stands before or after a stack of them."""

    block: Block
    count: int
    checkpointed: bool
    layered: bool = True


@dataclass(frozen=True, slots=True)
class Stack:
    """Layers one after the other, and the block before them.

    Attributes:
        layers: what the names of their weights start with, such as "model.layers.*.".
        count: how many.
        start: records the block before the first, given the assembly, the spec and what the stack before made (None for the
            first stack); gives it and what the layers share.
        layer: records a layer, given the assembly, the spec, its input and what the layers share.
        kind: what distinguishes a layer's weights, by spec and index; see `build`.
        form: what distinguishes its ops, by assembly, spec and index.
        checkpoints: gradient checkpointing applies to them.
    """

    layers: str
    count: int
    start: Callable[[Assembly, Any, Tensor | None], tuple[Block, Any]]
    layer: Callable[[Assembly, Any, Tensor, Any], Block]
    kind: Callable[[Any, int], str] = lambda *_: ""
    form: Callable[[Assembly, Any, int], object] = lambda *_: None
    checkpoints: bool = True


@dataclass(slots=True)
class Network:
    """Everything that the ledger, the clock and the report need of a model under a method.

    Attributes:
        runs: blocks in forward order.
        parameters: every weight, the method's included.
        notes: facts for the report.
        extra_saved_bytes: what a checkpoint has that is no parameter.
        embeddings_passed: the model is called with embeddings instead of token ids, so that its caller holds them.
        fused_update: weights are updated as their gradients are made.
        layers: indices of the layers whose weights' names start with a prefix.
    """

    runs: list[Run]
    parameters: list[Parameter]
    notes: dict[str, str]
    extra_saved_bytes: int = 0
    embeddings_passed: bool = False
    fused_update: bool = False
    layers: dict[str, list[int]] = field(default_factory=dict)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight by its name in the state dict, each layer's its own."""
        found: dict[str, tuple[int, ...]] = {}
        for p in self.parameters:
            if p.buffer:
                continue
            prefix = next((prefix for prefix in self.layers if p.name.startswith(prefix)), "")
            plain = re.sub(r"\*\(\d+\)", "*", prefix) + p.name[len(prefix) :]
            for index in self.layers.get(prefix, [0]):
                found[plain.replace("*", str(index), 1)] = p.shape
        return found

    @property
    def total_parameters(self) -> int:
        """Weights of model and method, tied ones once."""
        return sum(p.numel for p in self.parameters if not p.buffer)

    @property
    def trainable_parameters(self) -> int:
        """Weights that get a gradient."""
        return sum(p.numel for p in self.parameters if p.trainable)

    @property
    def quantized(self) -> bool:
        """Whether any weight is kept in a block format."""
        return any(p.storage in QUANTIZED for p in self.parameters)


def build(spec: ModelSpec, method: Method, settings: Settings) -> Network:
    """Assemble the model. Raises InputError where the method does not fit it.

    A family is one stack of decoder layers, or gives several with `stacks`. Layers are recorded once for each distinct form,
    which the method gives and, where its layers differ, the family: in ops alone (`layer_form`), or in their weights too
    (`layer_kind`, such as "moe"; its layers get names of their own). Without gradient checkpointing the first layer of a frozen
    model is one of its own, because its input needs no gradient.
    """
    builder = family(spec.model_type)
    model = Assembly(method, settings, spec)
    for part in method.parts:
        part.check_spec(spec, settings)
    stacks = builder.stacks(spec) if hasattr(builder, "stacks") else (_one(builder, spec),)
    runs: list[Run] = []
    indices: dict[str, list[int]] = {}
    entry: Tensor | None = None
    for stack in stacks:
        first, shared = stack.start(model, spec, entry)
        runs.append(Run(first, 1, checkpointed=False, layered=False))
        assert first.exit is not None
        entry = _layers(stack, model, first.exit, shared, runs, indices)
    runs.append(Run(builder.finish(model, spec, entry), 1, checkpointed=False, layered=False))
    for name in model.heads if method.copies_classifier else ():
        model.copy_frozen(model.parameters[name])
    for part in method.parts:
        part.check_model(model.linears, spec.num_hidden_layers)
    fused = any(part.fuses_update() for part in method.parts)
    passed = method.virtual_tokens > 0
    return Network(runs, list(model.parameters.values()), model.notes, model.extra_saved_bytes, passed, fused, indices)


def _one(builder: Any, spec: ModelSpec) -> Stack:
    """The stack of a family that has one."""
    return Stack(
        builder.LAYERS,
        spec.num_hidden_layers,
        lambda model, spec, _: builder.start(model, spec),
        builder.layer,
        getattr(builder, "layer_kind", lambda *_: ""),
        getattr(builder, "layer_form", lambda *_: None),
    )


def _layers(stack: Stack, model: Assembly, entry: Tensor, shared: Any, runs: list[Run], indices: dict[str, list[int]]) -> Tensor:
    """Record the layers of a stack, add their runs and the indices of their names; gives what the last one makes."""
    layers, spec, method = stack.count, model.spec, model.method
    checkpointed = stack.checkpoints and model.settings.gradient_checkpointing != "off"
    weights = [(stack.kind(spec, index), method.layer_form(index, layers)) for index in range(layers)]
    kinds = [(form, stack.form(model, spec, index)) for index, form in enumerate(weights)]
    prefixes = _prefixes(stack.layers, weights)
    recorded: dict[tuple[object, bool], Block] = {}
    index = 0
    while index < layers:
        known = set(model.parameters)
        prefix = prefixes[weights[index]]
        key = (kinds[index], entry.requires_grad)
        if key not in recorded:
            model.begin(prefix, 1, index)
            recorded[key] = stack.layer(model, spec, entry, shared)
        block = recorded[key]
        assert block.exit is not None
        alike = 1
        if block.exit.requires_grad == entry.requires_grad:
            while index + alike < layers and kinds[index + alike] == kinds[index]:
                alike += 1
        for name, parameter in model.parameters.items():
            if name.startswith(prefix):
                parameter.count += alike if name in known else alike - 1
        again = checkpointed and block.exit.requires_grad
        if alike > 1 and _reads_across(block):  # the first gradient of what crosses is kept, the others are added to it
            runs.append(Run(block, alike - 1, again))
            runs.append(Run(block, 1, again))
        else:
            runs.append(Run(block, alike, again))
        index += alike
        entry = block.exit
    for prefix in prefixes.values():
        indices[prefix] = [i for i, form in enumerate(weights) if prefixes[form] == prefix]
    return entry


def _reads_across(block: Block) -> bool:
    """Whether its backward makes a gradient of a tensor that an earlier block made for several."""
    own = {id(op.output) for op in block.ops}
    return any(g.of.crosses and id(g.of) not in own for op in block.ops for g in op.gradients)


def _prefixes(layers: str, weights: list[tuple[str, tuple[object, ...]]]) -> dict[tuple[str, tuple[object, ...]], str]:
    """What names of weights start with: as in `layers` for layers like the first, else with a number of their own."""
    distinct = dict.fromkeys(weights)
    return {form: layers if not number else layers.replace("*", f"*({number + 1})") for number, form in enumerate(distinct)}
