"""The weight matrices of a model's layers: what a kernel is timed on."""

import re
from dataclasses import dataclass

from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.network import build
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.training.settings import Settings

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Linear:
    """Linear layers of one shape and one name.

    Args:
        module: the last word of its name, such as `q_proj`.
        out_features: rows of the weight.
        in_features: columns of the weight.
        count: how many there are in the model.
    """

    module: str
    out_features: int
    in_features: int
    count: int


def linears(spec: ModelSpec) -> list[Linear]:
    """Matrices inside the layers of a model, in the order of its state dict; embedding, head and experts left out.

    A model whose experts lie in one tensor each, [experts, out, in], has its other layers here alone.
    GPT-2's `Conv1D` keeps its weight transposed and is listed as stored.
    """
    found: dict[tuple[str, int, int], int] = {}
    for name, shape in build(spec, parse("full"), Settings(seq_len=16)).shapes().items():
        module, _, kind = name.rpartition(".")
        if len(shape) == 2 and kind == "weight" and _LAYER.search(name):
            key = (module.rpartition(".")[2], *shape)
            found[key] = found.get(key, 0) + 1
    return [Linear(*key, count) for key, count in found.items()]
