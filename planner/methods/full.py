"""Full fine-tuning: every weight is trained."""

from dataclasses import dataclass
from typing import ClassVar

from tuneplan.planner.methods.part import Part, Weight


@dataclass(frozen=True, slots=True)
class Full(Part):
    """Nothing is added and nothing is frozen."""

    label: ClassVar[str] = "full"
    paper: ClassVar[str] = "none: ordinary training"
    source: ClassVar[str] = "torch.nn.Module with every parameter requiring a gradient"

    def freezes_base(self) -> bool:
        """Nothing is frozen."""
        return False

    def trains(self, weight: Weight) -> bool:
        """Every weight."""
        return True
