"""Whole kinds of base weights that are trained beside something else, such as LongLoRA's embeddings and norms."""

from dataclasses import dataclass
from typing import ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.part import Part, Weight

KINDS = ("embedding", "head", "norm", "bias")


@dataclass(frozen=True, slots=True)
class TrainedKinds(Part):
    """Base weights of these kinds get a gradient.

    Attributes:
        kinds: of embedding, head, norm and bias.
    """

    label: ClassVar[str] = "trained_kinds"
    family: ClassVar[str] = "selective"
    paper: ClassVar[str] = "Chen et al. 2024, LongLoRA: Efficient Fine-tuning of Long-Context Large Language Models"
    source: ClassVar[str] = "section 3.3: embeddings and norms are opened for training"
    code_changes: ClassVar[str] = "one loop: parameter.requires_grad by name"
    effort: ClassVar[str] = "training loop"

    kinds: tuple[str, ...] = ("embedding", "norm")

    def check(self) -> None:
        """Raise InputError for an unknown kind."""
        for kind in self.kinds:
            if kind not in KINDS:
                raise InputError(f"trained_kinds: {kind!r} is no kind of weight; choose of {', '.join(KINDS)}")

    def trains(self, weight: Weight) -> bool:
        """Weights of the kinds named."""
        return weight.kind in self.kinds
