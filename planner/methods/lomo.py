"""LOMO: each weight is updated when its gradient is made, and the gradient is freed."""

from dataclasses import dataclass
from typing import ClassVar

from tuneplan.planner.methods.full import Full


@dataclass(frozen=True, slots=True)
class Lomo(Full):
    """Full fine-tuning by SGD inside the backward: no optimizer states, and one gradient at a time."""

    label: ClassVar[str] = "lomo"
    family: ClassVar[str] = "memory-efficient"
    paper: ClassVar[str] = "Lv et al. 2024, Full Parameter Fine-tuning for Large Language Models with Limited Resources"
    source: ClassVar[str] = "section 3.2, algorithm 1; torch Tensor.register_post_accumulate_grad_hook"
    not_modelled: ClassVar[str] = "clipping by the norm, which takes a second backward; --optimizer has no effect"
    code_changes: ClassVar[str] = "the optimizer and the training loop (optimizer in backward)"
    effort: ClassVar[str] = "training loop"

    def fuses_update(self) -> bool:
        """The update happens in the backward."""
        return True
