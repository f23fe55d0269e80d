"""Full fine-tuning: every weight is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.part import Part, Weight

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly


@dataclass(frozen=True, slots=True)
class Full(Part):
    """Nothing is added and nothing is frozen.

    Attributes:
        frozen: modules that are left as they are, by any piece of their path, such as vision_tower.
    """

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

    frozen: tuple[str, ...] = ()

    def freezes_base(self) -> bool:
        """Nothing is frozen."""
        return False

    def trains(self, weight: Weight) -> bool:
        """Every weight that is not in a frozen module."""
        return not any(piece in self.frozen for piece in weight.name.split("."))

    def check_model(self, model: "Assembly", layers: int) -> None:
        """Raise InputError for a name that no module has."""
        pieces = {piece for name in model.parameters for piece in name.split(".")}
        for name in self.frozen:
            if name not in pieces:
                raise InputError(f"full: frozen names {name!r}, and {model.spec.id} has no such module; use vision_tower")
