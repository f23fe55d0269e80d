"""Full fine-tuning: every weight is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tuneplan.planner.methods.part import Part, Weight


@dataclass(frozen=True, slots=True)
class Full(Part):
    """Nothing is added and nothing is frozen."""

    label: ClassVar[str] = "full"
    family: ClassVar[str] = "full"
    paper: ClassVar[str] = "none: ordinary training"
    source: ClassVar[str] = "torch.nn.Module with every parameter requiring a gradient"
    code_changes: ClassVar[str] = "nothing"
    effort: ClassVar[str] = "none"
    swappable: ClassVar[bool] = False
    clashes: ClassVar[Mapping[str, str | None]] = {
        "*": "it trains the base weights that every other part freezes or leaves alone"
    }

    def freezes_base(self) -> bool:
        """Nothing is frozen."""
        return False

    def trains(self, weight: Weight) -> bool:
        """Every weight."""
        return True
