"""Cross-attention tuning: of an encoder-decoder, only the attention between the two is trained."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.part import Part, Weight

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly

NAMES = ("cross_attn", "crossattention", "encoder_attn", "EncDecAttention")


@dataclass(frozen=True, slots=True)
class Xattn(Part):
    """Every weight of the cross-attention gets a gradient, every other weight is frozen."""

    label: ClassVar[str] = "xattn"
    family: ClassVar[str] = "selective"
    paper: ClassVar[str] = "Gheini, Ren and May 2021, Cross-Attention is All You Need"
    source: ClassVar[str] = "section 3"
    not_modelled: ClassVar[str] = "models with an encoder: no such family is known yet, so that this part is always refused"
    code_changes: ClassVar[str] = "one loop: parameter.requires_grad by name"
    effort: ClassVar[str] = "training loop"

    def trains(self, weight: Weight) -> bool:
        """Weights of cross-attention."""
        return any(name in weight.name for name in NAMES)

    def finish(self, model: "Assembly") -> None:
        """Raise InputError for a model without cross-attention."""
        if not any(name in p for p in model.parameters for name in NAMES):
            raise InputError(
                f"xattn: {model.spec.id} is a decoder and has no cross-attention; use lora(target_modules=q_proj,k_proj,v_proj)"
            )
