"""Training on a small model of the same kind in place of the large one, for parts that are carried over afterwards."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.part import Part
from tuneplan.planner.methods.side_network import WIDTHS

if TYPE_CHECKING:
    from tuneplan.planner.models.spec import ModelSpec
    from tuneplan.planner.training.settings import Settings


@dataclass(frozen=True, slots=True)
class SmallModel(Part):
    """The step runs on a model whose widths are divided; the large model is only there when it answers, with the parts in it.

    Attributes:
        reduction_factor: the large model's widths (hidden states, MLP, heads' number) over the small one's.
        layers: of the small model; 0 for as many.
    """

    label: ClassVar[str] = "small_model"
    family: ClassVar[str] = "memory-efficient"
    paper: ClassVar[str] = (
        "Jin, Zhang and Zong 2023, Parameter-Efficient Tuning for LLM without Calculating Its Gradients (PEFT plug-in)"
    )
    source: ClassVar[str] = "section 3: the modules are tuned on the small model and plugged into the large one"
    not_modelled: ClassVar[str] = (
        "the bridge, which makes modules of the small widths fit the large model: when it answers, parts have the large model's "
        "widths; the checkpoint has the small one's"
    )
    trains_nothing: ClassVar[bool] = True
    code_changes: ClassVar[str] = "a bridge between the modules of two models"
    one_stack: ClassVar[bool] = True
    effort: ClassVar[str] = "model code"
    clashes: ClassVar[Mapping[str, str | None]] = {"full": "weights of the small model do not fit the large one; train adapters"}

    reduction_factor: int = 4
    layers: int = 0

    def check_spec(self, spec: "ModelSpec", settings: "Settings") -> None:
        """Raise InputError for widths that do not divide, and for more layers than there are."""
        factor = self.reduction_factor
        if factor < 1 or spec.hidden_size % factor:
            raise InputError(
                f"small_model: hidden_size {spec.hidden_size} of {spec.id} does not divide by reduction_factor={factor}; "
                "use another one"
            )
        if not 0 <= self.layers <= spec.num_hidden_layers:
            raise InputError(f"small_model: layers={self.layers}, but {spec.id} has {spec.num_hidden_layers} layers")

    def at_inference(self) -> None:
        """The large model answers."""
        return

    def reshaped(self, spec: "ModelSpec") -> "ModelSpec":
        """The small model: heads of the same size, fewer of them."""
        own = {f.name for f in fields(spec)}
        changes: dict[str, Any] = {}
        for name in WIDTHS:
            if name in own and name != "head_dim" and isinstance(getattr(spec, name), int):
                changes[name] = max(getattr(spec, name) // self.reduction_factor, 1)
        heads = max(spec.num_attention_heads // self.reduction_factor, 1)
        key_heads = max(spec.num_key_value_heads // self.reduction_factor, 1)
        key_heads = key_heads if heads % key_heads == 0 else 1
        layers = self.layers or spec.num_hidden_layers
        return replace(spec, num_attention_heads=heads, num_key_value_heads=key_heads, num_hidden_layers=layers, **changes)
