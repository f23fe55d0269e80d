"""Layer freezing: only the top layers are trained, with or without what stands around them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.part import Part, Weight

if TYPE_CHECKING:
    from tuneplan.planner.models.spec import ModelSpec
    from tuneplan.planner.training.settings import Settings


@dataclass(frozen=True, slots=True)
class PartialLayers(Part):
    """Every weight of some decoder layers is trained, the others are frozen.

    Attributes:
        top: so many of the last layers.
        head: the head and the last norm are trained too.
        embeddings: the embedding is trained too.
    """

    label: ClassVar[str] = "partial_layers"
    family: ClassVar[str] = "selective"
    paper: ClassVar[str] = "Lee, Tang and Lin 2019, What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning"
    source: ClassVar[str] = "section 3: the lower layers keep their weights"
    code_changes: ClassVar[str] = "one loop: parameter.requires_grad by the layer's index"
    effort: ClassVar[str] = "training loop"
    swappable: ClassVar[bool] = False

    top: int = 4
    head: bool = False
    embeddings: bool = False

    def check_spec(self, spec: "ModelSpec", settings: "Settings") -> None:
        """Raise InputError for a number of layers that the model does not have."""
        if not 1 <= self.top <= spec.num_hidden_layers:
            raise InputError(f"partial_layers: top={self.top}, but {spec.id} has {spec.num_hidden_layers} layers; use 1 or more")

    def layer_form(self, index: int, count: int) -> object:
        """Whether the layer is trained."""
        return count - index <= self.top

    def trained(self, index: int, count: int) -> bool:
        """Whether a layer is trained."""
        return count - index <= self.top

    def trains(self, weight: Weight) -> bool:
        """The weights of the top layers, and what is asked for around them."""
        if weight.layer is not None:
            return self.trained(weight.layer, weight.layers)
        if weight.kind == "embedding":
            return self.embeddings
        return self.head
