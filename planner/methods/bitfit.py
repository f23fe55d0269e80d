"""BitFit: only the biases are trained."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.part import Part, Weight

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly


@dataclass(frozen=True, slots=True)
class BitFit(Part):
    """Every bias of the model gets a gradient, every other weight is frozen."""

    label: ClassVar[str] = "bitfit"
    family: ClassVar[str] = "selective"
    paper: ClassVar[str] = "Ben Zaken et al. 2022, BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Models"
    source: ClassVar[str] = "section 3: parameter.requires_grad is true for biases alone"
    code_changes: ClassVar[str] = "one loop: parameter.requires_grad = name.endswith('bias')"
    effort: ClassVar[str] = "training loop"
    batchable: ClassVar[bool] = True

    def trains(self, weight: Weight) -> bool:
        """Biases."""
        return weight.kind == "bias"

    def finish(self, model: "Assembly") -> None:
        """Raise InputError for a model without biases, such as Llama."""
        if not any(p.trainable for p in model.parameters.values() if p.name.endswith(".bias")):
            raise InputError(f"bitfit: {model.spec.id} has no biases to train; use ln_tuning or ia3, or a model such as qwen2")
