"""The memory of one steady training step in the form that is compared: peaks, components, and the places that hold them.

Plain data without torch, so that a subprocess can hand it over as JSON.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Place:
    """One place in the program and what it holds at a moment.

    Attributes:
        category: a name of the planner's CATEGORIES.
        module: path of the module, layers of a stack as `*`; "" outside the model.
        op: the operator that made the storages.
        function: file and function that called torch, without a line number, so that it outlives edits above it.
        line: file and line number of most of the bytes.
        caller: file and line number in the user's own code that led there; "" where no code of the user's is involved.
        size_bytes: of all its storages.
        count: of storages.
        earlier: storages that an earlier step made.
    """

    category: str
    module: str
    op: str
    function: str
    line: str
    caller: str
    size_bytes: int
    count: int
    earlier: int = 0

    @property
    def key(self) -> str:
        """What tells it from other places of its category, in the baseline too."""
        return " | ".join((self.module or "-", self.op, self.function or "-"))


@dataclass(frozen=True, slots=True)
class Reading:
    """A steady step.

    Attributes:
        peak_bytes: most live bytes.
        phase: in which.
        op: module and operator that reached them.
        at_peak: bytes by category at that moment; they sum to the peak.
        highest: by category the most bytes that it holds at any moment of the step.
        phases: most live bytes by phase.
        kept_per_step_bytes: live bytes at the end of the last step less those of the step before: what the loop piles up.
        places: by category the places that hold its highest; they sum to it. Empty where no storage was tracked.
        peak_places: those of the peak.
        facts: what explains a change: parameters, whether layers are checkpointed, the optimizer.
    """

    peak_bytes: int
    phase: str
    op: str
    at_peak: Mapping[str, int]
    highest: Mapping[str, int]
    phases: Mapping[str, int]
    kept_per_step_bytes: int = 0
    places: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)
    peak_places: tuple[Place, ...] = ()
    facts: Mapping[str, int | bool | str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def of_json(cls, content: Mapping[str, Any]) -> "Reading":
        """From what `to_json` gave."""
        places = {name: tuple(Place(**place) for place in found) for name, found in content["places"].items()}
        return cls(**{**content, "places": places, "peak_places": tuple(Place(**place) for place in content["peak_places"])})
