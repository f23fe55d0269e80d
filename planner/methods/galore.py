"""GaLore: every weight is trained, but the optimizer works on gradients projected to a low rank."""

from dataclasses import dataclass
from typing import ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.full import Full


@dataclass(frozen=True, slots=True)
class GaLore(Full):
    """States of r x n instead of m x n for each linear weight (m <= n), and the m x r matrix that projects.

    Attributes:
        rank: r.
    """

    label: ClassVar[str] = "galore"
    family: ClassVar[str] = "memory-efficient"
    paper: ClassVar[str] = "Zhao et al. 2024, GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection"
    source: ClassVar[str] = "section 4, algorithm 2 and table 1"
    not_modelled: ClassVar[str] = "the decomposition every few hundred steps; layer-wise updates"
    code_changes: ClassVar[str] = "the optimizer: optim='galore_adamw' of the Trainer"
    effort: ClassVar[str] = "training loop"

    rank: int = 128

    def check(self) -> None:
        """Raise InputError for a rank below one."""
        if self.rank < 1:
            raise InputError(f"galore: rank={self.rank} is not a rank; it must be at least 1")

    def state_shape(self, shape: tuple[int, ...], kind: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the states of a weight are as large as, and the projection; an empty projection where it is not projected."""
        if kind != "linear" or len(shape) != 2 or self.rank >= min(shape):
            return shape, ()
        small, large = min(shape), max(shape)
        return (self.rank, large), (small, self.rank)
