"""Ladder side-tuning: a narrow copy of the layers, fed by the hidden states of every layer of the frozen model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.methods.side_network import NarrowCopy

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly


@dataclass(frozen=True, slots=True)
class Lst(NarrowCopy):
    """s_i = layer_i(g s_(i-1) + (1 - g) D_i h_i), layers of the width over `reduction_factor`; the head gets U s_n."""

    label: ClassVar[str] = "lst"
    family: ClassVar[str] = "memory-efficient"
    paper: ClassVar[str] = (
        "Sung, Cho and Bansal 2022, LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning"
    )
    source: ClassVar[str] = "sections 3.1 and 3.2; ylsung/Ladder-Side-Tuning, seq2seq/third_party/models/t5/modeling_side_t5.py"
    not_modelled: ClassVar[str] = (
        "dropped side layers, and the pruning that gives the side network its first weights; the model's own last norm stands "
        "in for the side network's"
    )

    def first(self, model: "Assembly", hidden: Tensor) -> Tensor:
        """The embeddings, projected down."""
        model.tape.scope = "side"
        return self.project(model, "side_first_downsample", hidden, self.narrow(model.spec).hidden_size)

    def step(self, model: "Assembly", hidden: Tensor, state: Tensor) -> Tensor:
        """Blend the layer's output, projected down, into the state and run the narrow layer."""
        model.tape.scope = "side"
        low = self.project(model, "side_downsample", hidden, self.narrow(model.spec).hidden_size)
        merged = self.blend(model, "side_gate", state, low)
        return self.run_layer(model, merged)

    def last(self, model: "Assembly", hidden: Tensor, state: Tensor) -> Tensor:
        """The state, projected up."""
        model.tape.scope = "side"
        out = self.project(model, "side_final_upsample", state, model.spec.hidden_size)
        model.tape.hold(hidden, state)
        return out
