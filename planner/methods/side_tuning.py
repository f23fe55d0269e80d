"""Side-tuning: a small network of its own sees the same input, and its output is blended with the frozen model's."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.methods.side_network import NarrowCopy

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly


@dataclass(frozen=True, slots=True)
class SideTuning(NarrowCopy):
    """R(x) = a B(x) + (1 - a) S(x), B the frozen model, S a narrow copy of its layers; a is trained."""

    label: ClassVar[str] = "side_tuning"
    family: ClassVar[str] = "memory-efficient"
    paper: ClassVar[str] = "Zhang et al. 2020, Side-Tuning: A Baseline for Network Adaptation via Additive Side Networks"
    source: ClassVar[str] = "section 3, equation 1"
    not_modelled: ClassVar[str] = (
        "other architectures of S than narrow copies of the layers, which the paper leaves open; distillation of S from B before"
    )

    def first(self, model: "Assembly", hidden: Tensor) -> Tensor:
        """The embeddings, projected down."""
        model.tape.scope = "side"
        return self.project(model, "side_first_downsample", hidden, self.narrow(model.spec).hidden_size)

    def step(self, model: "Assembly", hidden: Tensor, state: Tensor) -> Tensor:
        """A narrow layer; what the model's layer gave is not read."""
        model.tape.scope = "side"
        return self.run_layer(model, state)

    def last(self, model: "Assembly", hidden: Tensor, state: Tensor) -> Tensor:
        """The state, projected up, blended with the model's own output."""
        model.tape.scope = "side"
        up = self.project(model, "side_final_upsample", state, model.spec.hidden_size)
        return self.blend(model, "side_gate", hidden, up)
