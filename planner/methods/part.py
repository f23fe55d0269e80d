"""What a fine-tuning method is made of: parts that decide storage and training of weights, and rewrite the ops of modules."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.graph.tensor import Tensor

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight of the base model, as a part sees it.

    Attributes:
        name: its name in the state dict, layers written as `*`: "model.layers.*.self_attn.q_proj.weight".
        kind: "linear", "bias", "norm", "embedding" or "head".
        module: name of its module within its block, such as "self_attn.q_proj".
    """

    name: str
    kind: str
    module: str


@dataclass(frozen=True, slots=True)
class Part:
    """One composable piece of a method. A subclass sets the facts and overrides what it changes.

    Class attributes:
        label: the name on the command line.
        paper: authors, year and title of the source.
        source: the equation or the upstream file it follows.
        not_modelled: what it leaves out, for the report.
        mergeable: whether its result can be folded into the base weights.
    """

    label: ClassVar[str]
    paper: ClassVar[str]
    source: ClassVar[str]
    not_modelled: ClassVar[str] = ""
    mergeable: ClassVar[bool] = True

    def check(self) -> None:
        """Raise InputError where an option makes no sense."""

    def check_model(self, linears: set[str]) -> None:
        """Raise InputError where the part does not fit a model with these linear modules."""

    def freezes_base(self) -> bool:
        """Whether the base weights are frozen unless a part trains them."""
        return True

    def trains(self, weight: Weight) -> bool:
        """Whether this part trains a base weight."""
        return False

    def storage(self, weight: Weight, dtype: str) -> str | None:
        """The format in which the base weight is kept instead of `dtype` (a name of formats.py), or None to leave it."""
        return None

    def inputs_need_grad(self) -> bool:
        """Whether embeddings are made to require a gradient when gradient checkpointing is on."""
        return False

    def peft_config(self) -> dict[str, Any] | None:
        """The same part as PEFT's adapter_config.json has it, or None where PEFT adds nothing to the model.

        `autocast_adapter_dtype` is not in it: it is an argument of `get_peft_model`.
        """
        return None

    def linear(self, model: "Assembly", module: str, weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The output of a linear module, given its input x and its output y so far."""
        return y
