"""Intrinsic SAID: all weights change along a random subspace of few dimensions."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import linear
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Tensor, round_block
from tuneplan.planner.methods.targeted import Targeted

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly, Base, Site


@dataclass(frozen=True, slots=True)
class IntrinsicSaid(Targeted):
    """y = (W + lambda P(theta)) x, theta of d numbers shared by all modules, lambda one number a module.

    Attributes:
        d: dimensions of the subspace.
    """

    label: ClassVar[str] = "intrinsic_said"
    family: ClassVar[str] = "reparameterized"
    paper: ClassVar[str] = (
        "Aghajanyan, Gupta and Zettlemoyer 2021, Intrinsic Dimensionality Explains the Effectiveness of Language Model "
        "Fine-Tuning"
    )
    source: ClassVar[str] = "section 3.2, equation 3 (structure-aware), P by the Fastfood transform"
    not_modelled: ClassVar[str] = "the transform's own temporaries and its fixed random vectors; not checked against code"
    code_changes: ClassVar[str] = "a linear layer of its own"
    effort: ClassVar[str] = "model code"
    swappable: ClassVar[bool] = False

    d: int = 1000
    autocast_adapter_dtype: bool = False

    def check(self) -> None:
        """Raise InputError for a subspace without dimensions."""
        Targeted.check(self)
        if self.d < 1:
            raise InputError(f"intrinsic_said: d={self.d} is no number of dimensions; use such as 1000")

    def linear(self, model: "Assembly", site: "Site", x: Tensor, base: "Base") -> Tensor:
        """Project the shared numbers to a change of the weight, and multiply by the sum."""
        if not self.adapts(model, site):
            return base(x)
        tape, dtype = model.tape, self.dtype(model)
        theta = model.common("said.theta", (self.d,), dtype)
        factor = model.adapter(f"{site.module}.said_lambda", (1,), dtype)
        change = tape.fresh(site.weight.shape, dtype, True)
        full = round_block(change.nbytes)
        tape.record("fastfood", (theta,), change, gradients=(Gradient(theta, round_block(theta.nbytes), scratch=full),))
        weight = pw.add(tape, pw.detached(site.weight), pw.multiply(tape, change, factor))
        y = linear(tape, x, weight, site.bias)
        tape.hold(weight)
        return y
