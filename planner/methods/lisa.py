"""LISA: the embedding, the head and a few decoder layers, drawn anew from time to time, are trained."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.part import Part, Weight

if TYPE_CHECKING:
    from tuneplan.planner.models.spec import ModelSpec
    from tuneplan.planner.training.settings import Settings


@dataclass(frozen=True, slots=True)
class Lisa(Part):
    """Full fine-tuning of some layers at a time; their states are dropped with them.

    Attributes:
        active_layers: how many layers are trained at a time.
    """

    label: ClassVar[str] = "lisa"
    family: ClassVar[str] = "memory-efficient"
    paper: ClassVar[str] = "Pan et al. 2024, LISA: Layerwise Importance Sampling for Memory-Efficient LLM Fine-Tuning"
    source: ClassVar[str] = "section 3.2, algorithm 1"
    not_modelled: ClassVar[str] = "which layers are drawn: the first ones are taken, whose backward is longest"
    code_changes: ClassVar[str] = "a callback that opens and freezes layers"
    effort: ClassVar[str] = "training loop"
    swappable: ClassVar[bool] = False

    active_layers: int = 2

    def check_spec(self, spec: "ModelSpec", settings: "Settings") -> None:
        """Raise InputError for more layers than there are."""
        if not 1 <= self.active_layers <= spec.num_hidden_layers:
            raise InputError(f"lisa: active_layers={self.active_layers}, but {spec.id} has {spec.num_hidden_layers} layers")

    def layer_form(self, index: int, count: int) -> object:
        """Whether the layer is trained."""
        return index < self.active_layers

    def trains(self, weight: Weight) -> bool:
        """Everything outside the layers, and the active ones."""
        return weight.layer is None or weight.layer < self.active_layers
