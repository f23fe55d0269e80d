"""Where the networks of a model come from that no family mirrors: steps of its real code, which another package traces."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tuneplan.planner.models.spec import ModelSpec

if TYPE_CHECKING:
    from tuneplan.planner.methods.method import Method
    from tuneplan.planner.models.network import Network
    from tuneplan.planner.parallel.step import Walked
    from tuneplan.planner.replay import Replay
    from tuneplan.planner.timing.work import NetworkWork
    from tuneplan.planner.training.optimizers import Optimizer
    from tuneplan.planner.training.settings import Settings


class Recorded(Protocol):
    """A step as it ran, in the forms that the ledger, the clock and the replay give."""

    @property
    def basis(self) -> str:
        """Which traces it comes from, in words."""

    def walked(self, accumulating: bool) -> "Walked":
        """Its forward and backward; `accumulating`: the backward finds gradients."""

    def work(self) -> "NetworkWork":
        """What one micro-batch computes and moves."""

    def replay(
        self, network: "Network", settings: "Settings", optimizer: "Optimizer", expandable_segments: bool, empty_cache_steps: int
    ) -> "Replay":
        """Loading and two steps through the allocator, as `planner.replay.replay`."""


class Source(Protocol):
    """Steps of one model's real code."""

    def network(self, spec: ModelSpec, method: "Method", settings: "Settings") -> "Network":
        """The model under a method. Raises InputError where it cannot be traced so."""

    def refusal(self, method: "Method", settings: "Settings") -> str:
        """Why it cannot; empty where it can."""


@dataclass(frozen=True, slots=True)
class TracedSpec(ModelSpec):
    """A model that is planned from traces; dimensions that its config does not have by their usual names are 0.

    Attributes:
        traces: its steps.
        reason: why there is no family.
    """

    traces: Source = field(kw_only=True, compare=False, repr=False)
    reason: str = field(kw_only=True)

    @property
    def source(self) -> Source:
        """Its steps."""
        return self.traces
