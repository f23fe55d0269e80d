"""A part's gate: one number for each sequence, from the layer's own input, by which what the part adds is multiplied.

Mao et al. 2022, UniPELT, section 3.3; adapters 1.3 methods/modeling.py, lora.py and prefix_tuning.py (`use_gating`).
"""

from typing import TYPE_CHECKING

from tuneplan.planner.graph.matmul import linear
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Tensor, round_block

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly


def record(model: "Assembly", name: str, x: Tensor, dims: int = 3) -> Tensor:
    """The mean over tokens of `sigmoid(w x + b)`.

    Args:
        model: where ops are recorded.
        name: of the weights within the block.
        x: input `(batch, length, width)`.
        dims: of the result, `(batch, 1, ..., 1)`.
    """
    tape = model.tape
    width, dtype = int(x.shape[-1]), x.dtype
    score = linear(tape, x, model.adapter(f"{name}.weight", (1, width), dtype), model.adapter(f"{name}.bias", (1,), dtype))
    soft = tape.fresh(score.shape, dtype, True)
    tape.record("sigmoid", (score,), soft, saved=(soft,), gradients=(Gradient(score, round_block(score.nbytes)),))
    out = tape.fresh((x.shape[0], *(1,) * (dims - 1)), dtype, True)
    return tape.record("mean", (soft,), out, gradients=(Gradient(soft, round_block(soft.nbytes)),))
