"""A model under a method: runs of alike blocks, from token ids to the loss."""

from dataclasses import dataclass
from types import ModuleType

from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.methods.formats import QUANTIZED
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models.assembly import Assembly, Parameter
from tuneplan.planner.models.registry import family
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.training.settings import Settings


@dataclass(slots=True)
class Run:
    """`count` blocks alike, one after the other.

    Attributes:
        block: one of them.
        count: how many.
        checkpointed: its forward runs again in the backward instead of being kept.
        reversible: what entered it is computed from what left it, so that not even its entry is kept.
    """

    block: Block
    count: int
    checkpointed: bool
    reversible: bool = False

    def recomputation(self, settings: Settings) -> str:
        """How the forward runs again in the backward: "off", a kind of gradient checkpointing, or "reversible"."""
        if not self.checkpointed:
            return "off"
        return "reversible" if self.reversible else settings.gradient_checkpointing


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
    """

    runs: list[Run]
    parameters: list[Parameter]
    notes: dict[str, str]
    extra_saved_bytes: int = 0
    embeddings_passed: bool = False
    fused_update: bool = False

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

    Layers are recorded once for each distinct form, which the method gives and, where its layers differ, the family
    (`layer_form`); without gradient checkpointing the first layer of a frozen model is one of its own, because its input needs
    no gradient.
    """
    builder = family(spec.model_type)
    method = method.for_depth(spec.num_hidden_layers)
    for part in method.parts:
        part.check_spec(spec, settings)
        spec = part.reshaped(spec)
    model = Assembly(method, settings, spec)
    first, shared = builder.start(model, spec)
    model.layers_share = shared
    runs = [Run(first, 1, checkpointed=False)]
    entry = first.exit
    assert entry is not None
    reversible = any(part.reversible() for part in method.parts)
    checkpointed = reversible or settings.gradient_checkpointing != "off"
    layers = spec.num_hidden_layers
    forms = [method.layer_form(index, layers) for index in range(layers)]
    own = getattr(builder, "layer_form", lambda *_: None)
    kinds = [(form, own(model, spec, index)) for index, form in enumerate(forms)]
    recorded: dict[tuple[object, bool, bool], tuple[Block, set[str]]] = {}
    index = 0
    while index < layers:
        known = set(model.parameters)
        prefix = _prefix(builder.LAYERS, forms, index)
        key = (kinds[index], entry.requires_grad, model.beside is None)
        if key not in recorded:
            model.begin(prefix, 1, index)
            recorded[key] = _layer(builder, model, spec, entry, shared), model.met
        block, met = recorded[key]
        hidden, model.beside = _handed_on(block)
        alike = 1
        if hidden.requires_grad == entry.requires_grad and (model.beside is None) == key[2]:
            while index + alike < layers and kinds[index + alike] == kinds[index]:
                alike += 1
        for name, parameter in model.parameters.items():
            if name in met and name.startswith(prefix):
                parameter.count += alike if name in known else alike - 1
        runs.append(Run(block, alike, checkpointed, reversible))
        index += alike
        entry = hidden
    last = _after_layers(model, entry)
    if last is not None:
        runs.append(Run(last, 1, checkpointed=False))
        assert last.exit is not None
        entry = last.exit
    runs.append(Run(builder.finish(model, spec, entry), 1, checkpointed=False))
    for part in method.parts:
        part.check_model(model.linears, layers)
    fused = any(part.fuses_update() for part in method.parts)
    passed = method.virtual_tokens > 0
    return Network(runs, list(model.parameters.values()), model.notes, model.extra_saved_bytes, passed, fused)


def _layer(builder: ModuleType, model: Assembly, spec: ModelSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """Record a decoder layer with what parts put before it.

    Where a network beside the layers is trained, gradients go from its state to its state before; the hidden states have none.
    """
    before, inner = model.beside, entry
    for part in model.method.parts:
        inner = part.layer_entry(model, inner)
    if model.beside is not None:
        model.tape.passed.append(model.beside.storage)
    block: Block = builder.layer(model, spec, inner, shared)
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


def _prefix(layers: str, forms: list[tuple[object, ...]], index: int) -> str:
    """Names of the weights of a layer: those of the first form as in `layers`, of other forms with the form's number."""
    number = len(set(forms[: forms.index(forms[index])]))
    return layers if number == 0 else layers.replace("*", f"*({number + 1})")
