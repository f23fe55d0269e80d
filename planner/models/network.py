"""A model under a method: runs of alike blocks, from token ids to the loss."""

from dataclasses import dataclass

from tuneplan.planner.graph.block import Block
from tuneplan.planner.methods.formats import QUANTIZED
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models.assembly import Assembly, Parameter
from tuneplan.planner.models.registry import family
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.training.settings import Settings


@dataclass(slots=True)
class Run:
    """`count` blocks alike, one after the other."""

    block: Block
    count: int
    checkpointed: bool


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
    model = Assembly(method, settings, spec)
    for part in method.parts:
        part.check_spec(spec, settings)
    first, shared = builder.start(model, spec)
    runs = [Run(first, 1, checkpointed=False)]
    entry = first.exit
    assert entry is not None
    checkpointed = settings.gradient_checkpointing != "off"
    layers = spec.num_hidden_layers
    forms = [method.layer_form(index, layers) for index in range(layers)]
    own = getattr(builder, "layer_form", lambda *_: None)
    kinds = [(form, own(model, spec, index)) for index, form in enumerate(forms)]
    recorded: dict[tuple[object, bool], Block] = {}
    index = 0
    while index < layers:
        known = set(model.parameters)
        prefix = _prefix(builder.LAYERS, forms, index)
        key = (kinds[index], entry.requires_grad)
        if key not in recorded:
            model.begin(prefix, 1, index)
            recorded[key] = builder.layer(model, spec, entry, shared)
        block = recorded[key]
        assert block.exit is not None
        alike = 1
        if block.exit.requires_grad == entry.requires_grad:
            while index + alike < layers and kinds[index + alike] == kinds[index]:
                alike += 1
        for name, parameter in model.parameters.items():
            if name.startswith(prefix):
                parameter.count += alike if name in known else alike - 1
        runs.append(Run(block, alike, checkpointed))
        index += alike
        entry = block.exit
    runs.append(Run(builder.finish(model, spec, entry), 1, checkpointed=False))
    for part in method.parts:
        part.check_model(model, layers)
    fused = any(part.fuses_update() for part in method.parts)
    passed = method.virtual_tokens > 0
    return Network(runs, list(model.parameters.values()), model.notes, model.extra_saved_bytes, passed, fused)


def _prefix(layers: str, forms: list[tuple[object, ...]], index: int) -> str:
    """Names of the weights of a layer: those of the first form as in `layers`, of other forms with the form's number."""
    number = len(set(forms[: forms.index(forms[index])]))
    return layers if number == 0 else layers.replace("*", f"*({number + 1})")
