"""What a fine-tuning method is made of: parts that decide storage and training of weights, and rewrite the ops of modules."""

import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.graph.tensor import Tensor

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly, Base, Site
    from tuneplan.planner.models.spec import ModelSpec
    from tuneplan.planner.training.settings import Settings

FAMILIES = ("full", "additive", "selective", "reparameterized", "quantized", "memory-efficient", "pruned", "hybrid")
EFFORTS = ("none", "wrapper", "training loop", "model code", "kernel")
CLASSIFIER = "classifier"
"""The kind of weight that every method trains: the head of a classification is new."""
_STAR = re.compile(r"\*(\(\d+\))?")
WRAPPER = "nothing: peft.get_peft_model wraps the modules"


@lru_cache(maxsize=4096)
def numbered(name: str, layer: int | None) -> str:
    """A name with its `*`, or the `*(2)` of a further form of layers, replaced by the layer's index."""
    return name if layer is None else _STAR.sub(str(layer), name, count=1)


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight of the base model, as a part sees it.

    Attributes:
        name: its name in the state dict, layers written as `*`: "model.layers.*.self_attn.q_proj.weight".
        kind: "linear", "bias", "norm", "embedding", "head", CLASSIFIER, "router", "expert" (the matrices of all experts of a
            layer), or "other".
        module: name of its module within its block, such as "self_attn.q_proj".
        layer: index of its decoder layer, None outside the layers.
        layers: how many decoder layers the model has.
        owner: of a bias: "linear", "norm", "convolution" or "head".
    """

    name: str
    kind: str
    module: str
    layer: int | None = None
    layers: int = 0
    owner: str = "linear"

    @property
    def path(self) -> str:
        """The path of its module in the model, the layer as a number: "model.layers.3.self_attn.q_proj"."""
        return numbered(self.name, self.layer).rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class Part:
    """One composable piece of a method. A subclass sets the facts and overrides what it changes.

    Class attributes:
        label: the name on the command line.
        family: where the survey's taxonomy has it, one of FAMILIES.
        paper: authors, year and title of the source.
        source: the equation or the upstream file it follows.
        not_modelled: what it leaves out, for the report.
        mergeable: whether its result can be folded into the base weights.
        merge_note: what merging costs, if it is not exact.
        code_changes: what the user has to change, from a library's wrapper to the model's own code.
        effort: the same as a grade, one of EFFORTS, least first.
        swappable: whether what it trained can be exchanged on a loaded base that stays as it is.
        batchable: whether requests with different such adapters can share a batch.
        trains_nothing: it changes the model, and another part has to train something of it.
        one_stack: it is modelled for models of one stack of layers alone.
        clashes: labels of parts that it cannot act with, and why; "*" for all but those listed with None.
    """

    label: ClassVar[str]
    family: ClassVar[str]
    paper: ClassVar[str]
    source: ClassVar[str]
    not_modelled: ClassVar[str] = ""
    mergeable: ClassVar[bool] = True
    merge_note: ClassVar[str] = ""
    code_changes: ClassVar[str] = WRAPPER
    effort: ClassVar[str] = "wrapper"
    swappable: ClassVar[bool] = True
    batchable: ClassVar[bool] = False
    trains_nothing: ClassVar[bool] = False
    one_stack: ClassVar[bool] = False
    clashes: ClassVar[Mapping[str, str | None]] = {}

    def check(self) -> None:
        """Raise InputError where an option makes no sense."""

    def check_model(self, model: "Assembly", layers: int) -> None:
        """Raise InputError where the part does not fit the model, which is recorded whole by now."""

    def check_spec(self, spec: "ModelSpec", settings: "Settings") -> None:
        """Raise InputError where the part does not fit the model's dimensions or the run."""

    def allows(self, settings: "Settings") -> bool:
        """Whether the part can run under these settings; a search leaves out those that it cannot."""
        return True

    def freezes_base(self) -> bool:
        """Whether the base weights are frozen unless a part trains them."""
        return True

    def fuses_update(self) -> bool:
        """Whether each weight is updated when its gradient is made, so that no gradients and states are kept."""
        return False

    def state_shape(self, shape: tuple[int, ...], kind: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """For a trained base weight: the shape of its optimizer states, and of one more tensor that the optimizer keeps."""
        return shape, ()

    def trains(self, weight: Weight) -> bool:
        """Whether this part trains a base weight."""
        return False

    def storage(self, weight: Weight, dtype: str) -> str | None:
        """The format in which the base weight is kept instead of `dtype` (a name of formats.py), or None to leave it."""
        return None

    def peft_config(self) -> dict[str, Any] | None:
        """The same part as PEFT's adapter_config.json has it, or None where PEFT adds nothing to the model.

        `autocast_adapter_dtype` is not in it: it is an argument of `get_peft_model`.
        """
        return None

    def at_inference(self) -> "Part | None":
        """The part as it runs when nothing is trained and nothing is merged, or None if it has no part in a forward."""
        return self

    def cached_tokens(self) -> int:
        """Virtual tokens whose keys and values lie in the cache of every request, and are read for every token."""
        return 0

    def layer_form(self, index: int, count: int) -> object:
        """What distinguishes decoder layer `index` of `count` under this part; layers of one form are recorded once."""
        return None

    def virtual_tokens(self) -> int:
        """Tokens that the part puts before each sequence."""
        return 0

    def embedded(self, model: "Assembly", hidden: Tensor) -> Tensor:
        """The embeddings that enter the first layer. Shapes: `(batch, length, hidden)`, longer by virtual tokens."""
        return hidden

    def embedding_weight(self, model: "Assembly", weight: Tensor) -> Tensor:
        """The matrix that embeds tokens, and that is the head where that is tied to it."""
        return weight

    def linear(self, model: "Assembly", site: "Site", x: Tensor, base: "Base") -> Tensor:
        """The output of a linear module.

        Args:
            model: where ops are recorded.
            site: the module.
            x: its input `(..., in_features)`.
            base: records the module as the parts before this one leave it; takes the input and, if it is another, the weight.
        """
        return base(x)

    def stacked_weight(
        self, model: "Assembly", name: str, weight: Callable[[], Tensor], shape: tuple[int, ...], transposed: bool
    ) -> Callable[[], Tensor]:
        """A weight that no module holds, made when it is asked for: the matrices of all experts, or a router.

        Args:
            model: where ops are recorded.
            name: within the layer.
            weight: gives it as the parts before this one leave it.
            shape: `(experts, out, in)` or, transposed, `(experts, in, out)`; `(experts, in)` for a router.
            transposed: see shape.
        """
        return weight

    def normed(self, model: "Assembly", module: str, y: Tensor) -> Tensor:
        """The output of a norm, given its output y so far."""
        return y

    def prefix_length(self) -> int:
        """Keys and values that the part puts before those of each sequence."""
        return 0

    def keys_values(self, model: "Assembly", keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer. Shapes: `(batch, key_heads, length, head_dim)`, longer by the prefix."""
        return keys, values

    def grouped(self, model: "Assembly", q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as the kernel gets them. Shapes: `(batch, heads, length, head_dim)`."""
        return q, k, v

    def ungrouped(self, model: "Assembly", out: Tensor) -> Tensor:
        """What left the kernel, as the output projection gets it. Shape: `(batch, length, heads, head_dim)`."""
        return out

    def submodule(self, model: "Assembly", name: str, x: Tensor, residual: Tensor, y: Tensor) -> Tensor:
        """The output of `self_attn` or `mlp`, before the residual is added.

        Args:
            model: where ops are recorded.
            name: "self_attn" or "mlp".
            x: the module's input, normed.
            residual: what will be added to its output.
            y: its output so far.
        """
        return y

    def for_depth(self, count: int) -> "Part":
        """The part as it acts on a model of `count` decoder layers."""
        return self

    def reshaped(self, spec: "ModelSpec") -> "ModelSpec":
        """The dimensions of the model under this part, which may have taken layers, heads or channels out of it."""
        return spec

    def reversible(self) -> bool:
        """Whether the layers' inputs are computed from their outputs in the backward, so that nothing of them is kept."""
        return False

    def layer_entry(self, model: "Assembly", hidden: Tensor) -> Tensor:
        """What a decoder layer runs on, given what enters its block; a network beside the layers moves `model.beside` on."""
        return hidden

    def stack_exit(self, model: "Assembly", hidden: Tensor) -> Tensor:
        """What the model's last norm gets, given what left the last layer."""
        return hidden

    def added_logits(self, model: "Assembly") -> Tensor | None:
        """Logits of another model, which are added to this one's; None for none."""
        return None

    def layer_exit(self, model: "Assembly", hidden: Tensor) -> Tensor:
        """The output of a decoder layer."""
        return hidden

    def loss(self, model: "Assembly", loss: Tensor) -> Tensor:
        """The loss that is trained, given the model's own."""
        return loss

    def finish(self, model: "Assembly") -> None:
        """Declare what could not be before every module was met."""


def options(part: Part) -> "list[Field[Any]]":
    """A part's options: those of its own before those it shares with others."""
    shared = {f.name for base in type(part).__mro__[1:-2] for f in fields(base)}
    return sorted(fields(part), key=lambda option: option.name in shared)
