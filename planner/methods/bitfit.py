"""BitFit: only the biases are trained."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.layer_span import Layered
from tuneplan.planner.methods.part import Weight

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly


@dataclass(frozen=True, slots=True)
class BitFit(Layered):
    """Every bias of the model gets a gradient, every other weight is frozen."""

    label: ClassVar[str] = "bitfit"
    family: ClassVar[str] = "selective"
    paper: ClassVar[str] = "Ben Zaken et al. 2022, BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Models"
    source: ClassVar[str] = "section 3: parameter.requires_grad is true for biases alone"
    code_changes: ClassVar[str] = "one loop: parameter.requires_grad = name.endswith('bias')"
    effort: ClassVar[str] = "training loop"
    batchable: ClassVar[bool] = True

    def trains(self, weight: Weight) -> bool:
        """Biases, of the chosen layers if there are such."""
        return weight.kind == "bias" and self.in_layer(weight.layer)

    def layer_form(self, index: int, count: int) -> object:
        """Whether the layer's biases are trained."""
        return self.in_layer(index)

    def finish(self, model: "Assembly") -> None:
        """Say where the model has no biases, such as Llama. Raises InputError where bitfit is all there is."""
        if any(p.trainable for p in model.parameters.values() if p.name.endswith(".bias") and not p.adapter):
            return
        if len(model.method.parts) == 1:
            raise InputError(f"bitfit: {model.spec.id} has no biases to train; use ln_tuning or ia3, or a model such as qwen2")
        model.notes["bitfit"] = f"{model.spec.id} has no biases, so bitfit trains nothing of it"
