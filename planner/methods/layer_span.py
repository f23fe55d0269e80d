"""Which decoder layers a part acts in, written so that it holds for models of any depth."""

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.part import Part

if TYPE_CHECKING:
    from typing_extensions import Self

_SPAN = re.compile(r"(\d+)(?:/(\d+))?(?:-(\d+)(?:/(\d+))?)?")


@dataclass(frozen=True, slots=True)
class Layered(Part):
    """A part that can be kept to some layers.

    Attributes:
        layers: indices (7), spans (0-3, both ends included) or shares of the depth (1/6-3/6); empty for all layers.
    """

    layers: tuple[str, ...] = ()

    def for_depth(self, count: int) -> "Self":
        """The part with its spans written as indices. Raises InputError for a span that a model of `count` layers has not."""
        if not self.layers:
            return self
        chosen = sorted({index for span in self.layers for index in indices(span, count, self.label)})
        return replace(self, layers=tuple([str(index) for index in chosen]))

    def in_layer(self, index: int | None) -> bool:
        """Whether the part acts in a layer; None is outside the layers, where a part kept to some layers does not."""
        return not self.layers or (index is not None and str(index) in self.layers)


def indices(span: str, count: int, label: str) -> range:
    """The layers of a span in a model of `count`."""
    match = _SPAN.fullmatch(span.strip())
    if match is None:
        raise InputError(f"{label}: layers={span!r} is no span; write 7, 0-3 or shares of the depth such as 1/6-3/6")
    first, part, last, whole = match.groups()
    if part is None and whole is None:
        found = range(int(first), int(last if last is not None else first) + 1)
    elif part is None or whole is None or last is None or not int(part) * int(whole):
        raise InputError(f"{label}: layers={span!r} is no span; write 7, 0-3 or shares of the depth such as 1/6-3/6")
    else:
        found = range(round(Fraction(int(first), int(part)) * count), round(Fraction(int(last), int(whole)) * count))
    if not found or found[-1] >= count:
        raise InputError(f"{label}: layers={span!r} names no layers of the {count} that the model has (0 to {count - 1})")
    return found
