"""Offsite-tuning: the owner of the data trains the first and last layers around a shortened middle, the emulator."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.part import Part, Weight

if TYPE_CHECKING:
    from tuneplan.planner.models.spec import ModelSpec
    from tuneplan.planner.training.settings import Settings


@dataclass(frozen=True, slots=True)
class OffsiteTuning(Part):
    """The model of the owner of the data: adapter layers, the layers of the emulator, adapter layers; the adapters are trained.

    Attributes:
        adapter_layers: at each end (2 in the scripts of mit-han-lab/offsite-tuning).
        emulator_layers: of the middle that are kept; the others were dropped evenly.
    """

    label: ClassVar[str] = "offsite_tuning"
    family: ClassVar[str] = "memory-efficient"
    paper: ClassVar[str] = "Xiao, Lin and Han 2023, Offsite-Tuning: Transfer Learning without Full Model"
    source: ClassVar[str] = "section 3; mit-han-lab/offsite-tuning"
    not_modelled: ClassVar[str] = "distillation of the emulator, which the owner of the model does before"
    merge_note: ClassVar[str] = "the trained layers take the place of the model's own"
    code_changes: ClassVar[str] = "the list of layers before and after training"
    one_stack: ClassVar[bool] = True
    effort: ClassVar[str] = "training loop"
    clashes: ClassVar[Mapping[str, str | None]] = {"full": "the emulator is frozen"}

    adapter_layers: int = 2
    emulator_layers: int = 8

    def check_spec(self, spec: "ModelSpec", settings: "Settings") -> None:
        """Raise InputError for more layers than there are."""
        middle = spec.num_hidden_layers - 2 * self.adapter_layers
        if self.adapter_layers < 1 or not 0 <= self.emulator_layers <= middle:
            raise InputError(
                f"offsite_tuning: adapter_layers={self.adapter_layers} at each end and emulator_layers={self.emulator_layers} do "
                f"not fit the {spec.num_hidden_layers} layers of {spec.id}; keep 0 to {max(0, middle)} between"
            )

    def reshaped(self, spec: "ModelSpec") -> "ModelSpec":
        """The layers that the owner of the data has."""
        return replace(spec, num_hidden_layers=2 * self.adapter_layers + self.emulator_layers)

    def at_inference(self) -> None:
        """The owner of the model puts the trained layers back into the whole model."""
        return

    def layer_form(self, index: int, count: int) -> object:
        """Whether the layer is trained."""
        return index < self.adapter_layers or index >= count - self.adapter_layers

    def trains(self, weight: Weight) -> bool:
        """The layers at both ends."""
        return weight.layer is not None and bool(self.layer_form(weight.layer, weight.layers))
