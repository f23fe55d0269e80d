"""The weight matrices of catalogued models: `shapes.json`, written by docs/bench_shapes.py."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tuneplan.kernels.errors import KernelInputError

_FILE = Path(__file__).with_name("shapes.json")
_MOST_VALUES = 2**36


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """A weight [out_features, in_features]."""

    out_features: int
    in_features: int

    @classmethod
    def read(cls, text: str) -> "Shape":
        """`11008x4096`. Raises KernelInputError for anything else."""
        parts = text.lower().strip().split("x")
        if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
            raise KernelInputError(f"shape {text!r:.60} is not OUTxIN of a weight; write such as 11008x4096")
        shape = cls(*(int(part[:12]) for part in parts))
        if not 0 < shape.weights <= _MOST_VALUES:
            raise KernelInputError(f"shape {text!r:.60} has {shape.weights} values; 1 to {_MOST_VALUES} are timed")
        return shape

    @property
    def weights(self) -> int:
        """Values of the weight."""
        return self.out_features * self.in_features

    def __str__(self) -> str:
        return f"{self.out_features}x{self.in_features}"


@cache
def models() -> dict[str, tuple[Shape, ...]]:
    """The distinct shapes of each model, largest last."""
    table = json.loads(_FILE.read_text(encoding="utf-8"))
    return {
        entry["model"]: tuple(
            sorted({Shape(one["out_features"], one["in_features"]) for one in entry["linears"]}, key=lambda s: (s.weights, s))
        )
        for entry in table
    }


def all_shapes() -> tuple[Shape, ...]:
    """The distinct shapes of all models, smallest first."""
    return tuple(sorted({shape for shapes in models().values() for shape in shapes}, key=lambda s: (s.weights, s)))
