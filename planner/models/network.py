"""A model under a method: runs of alike blocks, from token ids to the loss."""

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Storage, Tensor
from tuneplan.planner.methods.formats import QUANTIZED
from tuneplan.planner.methods.full import Full
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.parameter import Parameter
from tuneplan.planner.models.registry import family, has_checkpointing
from tuneplan.planner.models.source import Recorded
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.training.objective import PROMPT, REFERENCE
from tuneplan.planner.training.settings import Settings

Found = TypeVar("Found")


@dataclass(slots=True)
class Run:
    """`count` blocks alike, one after the other.

    Attributes:
        block: one of them.
        count: how many.
        checkpointed: its forward runs again in the backward instead of being kept.
        reversible: what entered it is computed from what left it, so that not even its entry is kept.
        layered: they are layers, not what stands before or after a stack of them.
    """

    block: Block
    count: int
    checkpointed: bool
    reversible: bool = False
    layered: bool = True

    def recomputation(self, settings: Settings) -> str:
        """How the forward runs again in the backward: "off", a kind of gradient checkpointing, or "reversible"."""
        if not self.checkpointed:
            return "off"
        return "reversible" if self.reversible else settings.gradient_checkpointing


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
        shared: layers of one kind share one set of weights, and the kind stands for the "*" of `layers` (ALBERT).
        joints: indices of the layers behind which something stands that gradient checkpointing leaves alone.
        joint: records that, given the assembly, the spec, the layer's index, what the layer made and what the layers share.
    """

    layers: str
    count: int
    start: Callable[[Assembly, Any, Tensor | None], tuple[Block, Any]]
    layer: Callable[[Assembly, Any, Tensor, Any], Block]
    kind: Callable[[Any, int], str] = lambda *_: ""
    form: Callable[[Assembly, Any, int], object] = lambda *_: None
    checkpoints: bool = True
    shared: bool = False
    joints: tuple[int, ...] = ()
    joint: Callable[[Assembly, Any, int, Tensor, Any], Block] | None = None


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
        spec: the model's dimensions.
        reference: the model as it runs without gradients and adapters beside the one that is trained (DPO, GRPO); None where it
            does not.
        prompts: the same on the prompts of a generation (GRPO).
        recorded: the step as it ran, where it was traced: then `runs` are only layers with their weights, without ops.
        known: what was found out about its weights and the runs that have them, by what it depends on beside; see `remembered`.
    """

    runs: list[Run]
    parameters: list[Parameter]
    notes: dict[str, str]
    extra_saved_bytes: int = 0
    embeddings_passed: bool = False
    fused_update: bool = False
    layers: dict[str, list[int]] = field(default_factory=dict)
    spec: ModelSpec | None = None
    reference: "Network | None" = None
    prompts: "Network | None" = None
    recorded: Recorded | None = None
    known: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def remembered(self, key: Hashable, find: Callable[[], Found]) -> Found:
        """A figure of the weights, found once. `key`: all that it depends on beside them."""
        key = (key, self.fused_update)
        if key not in self.known:
            self.known[key] = find()
        found: Found = self.known[key]
        return found

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
        """Weights that are left to be trained."""
        return sum(p.numel for p in self.parameters if p.trainable or p.idle)

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
    if spec.source is not None:
        return spec.source.network(spec, method, settings)
    if settings.image_size is not None:
        spec = spec.sized(settings.image_size)
    builder, given = family(spec.model_type), spec
    method = method.for_depth(spec.num_hidden_layers)
    if settings.gradient_checkpointing != "off" and not has_checkpointing(spec):
        raise InputError(
            f"transformers has no gradient checkpointing for {spec.model_type} models; use --no-gradient-checkpointing"
        )
    if settings.images != 1 and not spec.image_tokens:
        raise InputError(f"{spec.id} does not read images beside text, so leave --images out")
    for part in method.parts:
        if part.one_stack and hasattr(builder, "stacks"):
            raise InputError(f"{part.label} is modelled for one stack of decoder layers, and {spec.id} has several; use lora")
        part.check_spec(spec, settings)
        spec = part.reshaped(spec)
    model = Assembly(method, settings, spec)
    runs: list[Run] = []
    indices: dict[str, list[int]] = {}
    entry: Tensor | None = None
    several = builder.stacks if hasattr(builder, "stacks") else lambda _: (_one(builder, spec),)
    for stack in several(spec) if settings.images or not hasattr(builder, "text_stacks") else builder.text_stacks(spec):
        first, shared = stack.start(model, spec, entry)
        model.layers_share = shared
        runs.append(Run(first, 1, checkpointed=False, layered=False))
        assert first.exit is not None
        entry = _layers(stack, model, first.exit, shared, runs, indices)
    assert entry is not None
    last = _after_layers(model, entry)
    if last is not None:
        runs.append(Run(last, 1, checkpointed=False, layered=False))
        assert last.exit is not None
        entry = last.exit
    runs.append(Run(_finish(builder, model, spec, entry, last is None), 1, checkpointed=False, layered=False))
    for name in model.heads if method.copies_classifier else ():
        model.copy_frozen(model.parameters[name])
    for part in method.parts:
        part.check_model(model, spec.num_hidden_layers)
    fused = any(part.fuses_update() for part in method.parts)
    passed = method.virtual_tokens > 0
    network = Network(runs, list(model.parameters.values()), model.notes, model.extra_saved_bytes, passed, fused, indices, spec)
    if settings.objective.name in ("dpo", "grpo"):
        _add_inference(network, given, method, settings)
    return network


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
    reversible = any(part.reversible() for part in method.parts)
    checkpointed = reversible or (stack.checkpoints and model.settings.gradient_checkpointing != "off")
    weights = [(stack.kind(spec, index), form) for index, form in enumerate(method.layer_forms(layers))]
    kinds = [(form, stack.form(model, spec, index)) for index, form in enumerate(weights)]
    prefixes = _prefixes(stack.layers, weights)
    if stack.shared:
        prefixes = {form: stack.layers.replace("*", form[0]) for form in weights}
    recorded: dict[tuple[object, bool, bool, bool, bool], tuple[Block, set[str], list[Tensor]]] = {}
    index = 0
    trailing: tuple[Storage, ...] = ()
    while index < layers:
        known = set(model.parameters)
        prefix = prefixes[weights[index]]
        key = (kinds[index], entry.requires_grad, model.beside is None, bool(trailing), index in stack.joints)
        if key not in recorded:
            model.begin(prefix, 1, index)
            recorded[key] = _layer(stack, model, spec, entry, shared), model.met, model.router_logits
            recorded[key][0].beside += trailing
        block, met, routers = recorded[key]
        hidden, model.beside = _handed_on(block)
        alike = 1
        apart = trailing or index in stack.joints
        if hidden.requires_grad == entry.requires_grad and (model.beside is None) == key[2] and not apart:
            while index + alike < layers and kinds[index + alike] == kinds[index] and index + alike not in stack.joints:
                alike += 1
        for name, parameter in model.parameters.items():
            if name in met and name.startswith(prefix) and not stack.shared:
                parameter.count += alike if name in known else alike - 1
        assert block.exit is not None
        skipped = block.entry is not None and block.exit.storage is block.entry.storage
        again = checkpointed and not skipped and (reversible or block.exit.requires_grad)
        parts = (alike - 1, 1) if alike > 1 and _reads_across(block) else (alike,)
        runs += [Run(block, count, again, reversible) for count in parts]
        model.routers += [(logits, alike) for logits in routers]
        index += alike
        entry, trailing = hidden, ()
        if index - 1 in stack.joints:
            assert stack.joint is not None
            model.begin("", 1)
            joint = stack.joint(model, spec, index - 1, entry, shared)
            runs.append(Run(joint, 1, checkpointed=False))
            assert joint.exit is not None
            entry, trailing = joint.exit, joint.trailing
    for prefix in prefixes.values():
        indices[prefix] = [0] if stack.shared else [i for i, form in enumerate(weights) if prefixes[form] == prefix]
    return entry


def _reads_across(block: Block) -> bool:
    """Whether its backward makes a gradient of a tensor that an earlier block made for several, or of a weight that layers share.

    Of such layers the last, which makes the first gradient, is a run of its own: the others add theirs to that one.
    """
    own = {id(op.output) for op in block.ops}
    made = [g.of for op in block.ops for g in op.gradients]
    return any((of.crosses and id(of) not in own) or (of.name and "*" not in of.name) for of in made)


def _layer(stack: Stack, model: Assembly, spec: ModelSpec, entry: Tensor, shared: Any) -> Block:
    """Record a layer with what parts put before it.

    Where a network beside the layers is trained, gradients go from its state to its state before; the hidden states have none.
    """
    before, inner = model.beside, entry
    for part in model.method.parts:
        inner = part.layer_entry(model, inner)
    if model.beside is not None:
        model.tape.passed.append(model.beside.storage)
    block = stack.layer(model, spec, inner, shared)
    if model.beside is None:
        block.entry = entry
        return block
    block.frozen_exit, block.beside = block.exit, (entry.storage,)
    block.entry, block.exit = before, model.beside
    return block


def _handed_on(block: Block) -> tuple[Tensor, Tensor | None]:
    """The hidden states that leave a layer, and the state of the network beside the layers, if there is one."""
    assert block.exit is not None
    return (block.exit, None) if block.frozen_exit is None else (block.frozen_exit, block.exit)


def _after_layers(model: Assembly, entry: Tensor) -> Block | None:
    """What parts do between the last layer and the model's last norm, None if nothing."""
    tape, before = model.begin("", 1), model.beside
    hidden = entry
    for part in model.method.parts:
        hidden = part.stack_exit(model, hidden)
    if hidden is entry:
        return None
    if before is None:
        kept = any(part.reversible() for part in model.method.parts)  # what the backward of the layers starts from
        return close("after_layers", tape, None if kept else entry, hidden)
    block = close("after_layers", tape, before, hidden)
    block.beside = (entry.storage,)
    return block


def _finish(builder: Any, model: Assembly, spec: ModelSpec, entry: Tensor, direct: bool) -> Block:
    """Record head and loss. `direct`: they read what left the last layer, and with it the network beside the layers, if any."""
    state = model.beside if direct else None
    block: Block = builder.finish(model, spec, entry)
    if state is not None:
        block.entry, block.beside = state, (state.storage,)
    return block


def _prefixes(layers: str, weights: list[tuple[str, tuple[object, ...]]]) -> dict[tuple[str, tuple[object, ...]], str]:
    """What names of weights start with: as in `layers` for layers like the first, else with a number of their own."""
    distinct = dict.fromkeys(weights)
    return {form: layers if not number else layers.replace("*", f"*({number + 1})") for number, form in enumerate(distinct)}


def _add_inference(network: Network, spec: ModelSpec, method: Method, settings: Settings) -> None:
    """The forwards that an objective runs without gradients.

    The reference's is on the method's base, as it is loaded; the others' are on the model as it is trained.
    """
    objective = settings.objective
    base = tuple(part for part in method.parts if part.label == "quantized_base")
    bare = Method("reference", base or (Full(),))
    plain = replace(settings, gradient_checkpointing="off", micro_batch_size=settings.sequences)
    if objective.reference in ("adapters-off", "model") or objective.vllm_bytes:
        scored = method if objective.reference == "none" else bare
        network.reference = build(spec, scored, replace(plain, objective=replace(objective, name=REFERENCE)))
    if objective.generates_here:
        prompt = settings.seq_len - objective.completion_length
        batch = objective.generated or settings.micro_batch_size
        read = replace(plain, micro_batch_size=batch, seq_len=prompt, objective=replace(objective, name=PROMPT))
        network.prompts = build(spec, method, read)
