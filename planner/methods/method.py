"""A method: parts that act together on one model."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from tuneplan.planner.methods.part import CLASSIFIER, Part, Weight

if TYPE_CHECKING:
    from tuneplan.planner.training.settings import Settings


@dataclass(frozen=True, slots=True)
class Method:
    """A composition of parts.

    Attributes:
        name: as the user wrote it, with the options that differ from the defaults.
        parts: in the order in which they act.
    """

    name: str
    parts: tuple[Part, ...]

    def for_depth(self, count: int) -> "Method":
        """The parts as they act on a model of `count` decoder layers."""
        return replace(self, parts=tuple([part.for_depth(count) for part in self.parts]))

    def trains(self, weight: Weight) -> bool:
        """Whether any part trains a base weight; every method trains a classifier."""
        return weight.kind == CLASSIFIER or any(part.trains(weight) for part in self.parts)

    def storage(self, weight: Weight, dtype: str) -> str:
        """The format of a base weight: that of the first part that changes it, else `dtype`."""
        for part in self.parts:
            storage = part.storage(weight, dtype)
            if storage is not None:
                return storage
        return dtype

    def allows(self, settings: "Settings") -> bool:
        """Whether every part can run under these settings."""
        return all(part.allows(settings) for part in self.parts)

    @property
    def copies_classifier(self) -> bool:
        """Whether PEFT trains a copy of the classifier beside the frozen original (`modules_to_save`)."""
        return any(part.peft_config() is not None for part in self.parts)

    @property
    def mergeable(self) -> bool:
        """Whether every part folds into the base weights."""
        return all(part.mergeable for part in self.parts)

    def layer_forms(self, count: int) -> tuple[tuple[object, ...], ...]:
        """What distinguishes each of `count` decoder layers: the forms of all parts."""
        return _layer_forms(self.parts, count)

    @property
    def virtual_tokens(self) -> int:
        """Tokens that the parts put before each sequence."""
        return sum([part.virtual_tokens() for part in self.parts])

    @property
    def prefix_length(self) -> int:
        """Keys and values that the parts put before those of each sequence."""
        return sum([part.prefix_length() for part in self.parts])


@lru_cache(maxsize=64)
def _layer_forms(parts: tuple[Part, ...], count: int) -> tuple[tuple[object, ...], ...]:
    return tuple([tuple([part.layer_form(index, count) for part in parts]) for index in range(count)])
