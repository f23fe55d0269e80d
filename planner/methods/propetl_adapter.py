"""ProPETL: one prototype adapter for all layers, under a binary mask of each layer."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.graph.matmul import linear
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Tensor, round_block
from tuneplan.planner.methods.bottleneck_adapter import BottleneckAdapter

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly


@dataclass(frozen=True, slots=True)
class ProPetlAdapter(BottleneckAdapter):
    """y + U' f(D' y), D' = m * D with D and U shared by all layers and m = 1 where a layer's trained score is among the highest.

    What is saved is the prototype and one bit for each mask's entry; the scores are needed to train alone.
    """

    label: ClassVar[str] = "propetl_adapter"
    family: ClassVar[str] = "pruned"
    paper: ClassVar[str] = "Zeng, Zhang and Lu 2023, One Network, Many Masks: Towards More Parameter-Efficient Transfer Learning"
    source: ClassVar[str] = "section 3.1, equations 1 to 3; the gradient of a mask goes to its score as it is (straight-through)"
    not_modelled: ClassVar[str] = "shared prefixes and LoRA, which the paper masks in the same way"
    module: ClassVar[str] = "propetl"

    mh_adapter: bool = False

    def dense(self, model: "Assembly", name: str, x: Tensor, width: int, dtype: str) -> Tensor:
        """One layer of the network under its mask, with the prototype's bias."""
        tape, shape = model.tape, (width, int(x.shape[-1]))
        kind = name.rpartition(".")[2]
        prototype = model.common(f"propetl.{kind}.weight", shape, dtype)
        bias = model.common(f"propetl.{kind}.bias", (width,), dtype)
        scores = model.adapter(f"{name}.score", shape, dtype, saved_bits=1)
        size = round_block(scores.nbytes)
        mask = tape.fresh(shape, dtype, True)
        # sorting for the threshold holds values and 64-bit places of all scores
        order = size + round_block(8 * scores.numel)
        tape.record("mask", (scores,), mask, gradients=(Gradient(scores, size),), scratch=order)
        weight = tape.fresh(shape, dtype, True)
        gradients = (Gradient(mask, size), Gradient(prototype, size))
        tape.record("mul", (mask, prototype), weight, saved=(mask, prototype), gradients=gradients)
        y = linear(tape, x, weight, bias)
        tape.hold(mask, weight)
        return y
