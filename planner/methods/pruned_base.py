"""Structured pruning of the base: heads and channels of the MLP are taken out of every layer."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.part import Part

if TYPE_CHECKING:
    from tuneplan.planner.models.spec import ModelSpec
    from tuneplan.planner.training.settings import Settings

MOMENTS = ("start", "end")
CHANNELS = 64
"""Channels of the MLP are kept in multiples of this, which tensor cores like."""


@dataclass(frozen=True, slots=True)
class PrunedBase(Part):
    """W of the shape that is left: fewer heads of every attention, fewer channels of every MLP; the residual stream stays.

    Attributes:
        ratio: share of heads and channels that is taken out in the end.
        moment: start (the base is whole: what decides the memory of a run) or end (it is pruned).
    """

    label: ClassVar[str] = "pruned_base"
    family: ClassVar[str] = "pruned"
    paper: ClassVar[str] = (
        "Zhang et al. 2024, LoRAPrune: Structured Pruning Meets Low-Rank Parameter-Efficient Fine-Tuning; Hedegaard et al. 2022, "
        "Structured Pruning Adapters"
    )
    source: ClassVar[str] = "LoRAPrune section 3.3 and algorithm 1; Structured Pruning Adapters section 3 (SPLoRA)"
    not_modelled: ClassVar[str] = (
        "masks and running importances (a number a head or channel; the masks are 0.1 % of a small model's peak), and the steps "
        "between start and end; layers are pruned alike"
    )
    trains_nothing: ClassVar[bool] = True
    code_changes: ClassVar[str] = "a callback that scores heads and channels and cuts the weights"
    one_stack: ClassVar[bool] = True
    effort: ClassVar[str] = "training loop"
    swappable: ClassVar[bool] = False

    ratio: float = 0.5
    moment: str = "start"

    def check(self) -> None:
        """Raise InputError where an option makes no sense."""
        if not 0 <= self.ratio < 1:
            raise InputError(f"pruned_base: ratio={self.ratio} is not a share below 1; use such as 0.5")
        if self.moment not in MOMENTS:
            raise InputError(f"pruned_base: moment={self.moment!r} is not known; choose one of {', '.join(MOMENTS)}")

    def check_spec(self, spec: "ModelSpec", settings: "Settings") -> None:
        """Raise InputError for a family whose MLP has no channels of its own to take out."""
        if not any(f.name == "intermediate_size" for f in fields(spec)):
            raise InputError(f"pruned_base: {spec.model_type} models have no single intermediate_size to prune")

    def at_inference(self) -> Part:
        """The pruned model answers."""
        return replace(self, moment="end")

    def reshaped(self, spec: "ModelSpec") -> "ModelSpec":
        """Fewer heads and channels; a group of query heads goes with its key head."""
        if self.moment == "start":
            return spec
        groups = max(round(spec.num_key_value_heads * (1 - self.ratio)), 1)
        heads = spec.num_attention_heads // spec.num_key_value_heads * groups
        channels = spec.intermediate_size  # type: ignore[attr-defined]  # a field of the families, not of the base
        kept = max(round(channels * (1 - self.ratio) / CHANNELS) * CHANNELS, 1)
        changes = {"num_attention_heads": heads, "num_key_value_heads": groups, "intermediate_size": kept}
        return replace(spec, **changes)
