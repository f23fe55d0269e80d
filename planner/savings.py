"""What each switch of a configuration would save or cost, found by running the ledger and the clock again with it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tuneplan.planner.device_memory import runtime_of
from tuneplan.planner.errors import InputError
from tuneplan.planner.memory import step_memory, walk
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.parallel.step import Walked
from tuneplan.planner.request import Request
from tuneplan.planner.switches import TRAINING, Switch, switches
from tuneplan.planner.timing.request_time import time_of
from tuneplan.planner.timing.work import NetworkWork, network_work
from tuneplan.planner.training.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from tuneplan.planner.plan import Plan

WORTH_NAMING = 0.001
"""A switch that gains less than this share of the peak and of the step's time together is not recommended; one that costs
less than this share of either is free."""
BEST = 3
ALLOCATED = "allocated peak"
RESERVED = "reserved peak"


@dataclass(frozen=True, slots=True)
class Saving:
    """One switch and what it does.

    Attributes:
        switch: what is set otherwise.
        saved_bytes: of the peak on each GPU; negative where it costs.
        saved_seconds: of an update over the same tokens; negative where it costs, None without a time.
        of: whose peak the bytes are of: ALLOCATED (counted), or RESERVED where only fragmentation changes (replayed).
        gain: share of the peak saved, plus share of the time saved.
        free: whether it costs neither bytes nor seconds.
        fits: whether the configuration with it fits in the memory that was asked for; None where none was.
    """

    switch: Switch
    saved_bytes: int
    saved_seconds: float | None
    of: str
    gain: float
    free: bool
    fits: bool | None

    def to_json(self) -> dict[str, Any]:
        """The switch and its figures."""
        return {
            "switch": self.switch.name,
            "change": self.switch.words,
            "effect": self.switch.effect,
            "saved_bytes": self.saved_bytes,
            "of": self.of,
            "saved_seconds": self.saved_seconds,
            "gain": self.gain,
            "free": self.free,
            "fits": self.fits,
        }


@dataclass(frozen=True, slots=True)
class _State:
    """A configuration as far as switches need it."""

    network: Network
    walked: Walked
    work: NetworkWork
    allocated_bytes: int
    seconds: float | None


def savings(request: Request, fragmentation_bytes: int, replayed: bool) -> tuple[Saving, ...]:
    """Every switch of a configuration: free ones, then those that trade time for memory, then those that train otherwise.

    Of each kind the one that gains most is first.

    Switches are looked at one by one: what two of them save together is not the sum.

    Args:
        request: the configuration.
        fragmentation_bytes: reserved above allocated at its peak.
        replayed: whether that comes from a replay of the step; without one `expandable_segments` is not looked at.
    """
    base = _state(request)
    found = []
    for switch in switches(request):
        if switch.name == "expandable_segments":
            if replayed:
                found.append(_unfragmented(switch, base, fragmentation_bytes))
            continue
        try:
            changed = _state(switch.request, base if _same_network(request, switch.request) else None)
        except InputError:  # the model has no such modules
            continue
        saved = base.allocated_bytes - changed.allocated_bytes
        seconds = None
        if base.seconds is not None and changed.seconds is not None:
            seconds = base.seconds - changed.seconds
        fits = _fits(request, changed.network, changed.allocated_bytes + fragmentation_bytes)
        found.append(_saving(switch, saved, seconds, ALLOCATED, base, fits))
    return tuple(sorted(found, key=lambda s: (s.switch.effect == TRAINING, not s.free, -s.gain)))


def plan_savings(plan: "Plan") -> tuple[Saving, ...]:
    """Every switch of a plan, against the memory that it may use; none where ranks split the model."""
    if plan.request.sharding.splits_model:
        return ()
    request = replace(plan.request, capacity_bytes=plan.usable_bytes)
    return savings(request, plan.fragmentation_bytes, plan.replayed)


def best(found: Sequence[Saving]) -> tuple[Saving, ...]:
    """The switches to recommend: the first BEST that gain, fit, and train the same; of several optimizers the first."""
    worth = [s for s in found if s.gain >= WORTH_NAMING and s.fits is not False and s.switch.effect != TRAINING]
    optimizers = [s for s in worth if s.switch.name in OPTIMIZERS]
    return tuple([s for s in worth if s not in optimizers[1:]][:BEST])


def _same_network(request: Request, other: Request) -> bool:
    return (request.method, request.settings) == (other.method, other.settings)


def _state(request: Request, like: _State | None = None) -> _State:
    """Memory and time of a configuration. `like`: one with the same network, whose walk and work are taken over."""
    settings = request.settings
    network = like.network if like else build(request.spec, request.method, settings)
    walked = like.walked if like else walk(network, settings)
    work = like.work if like else network_work(network, settings)
    memory = step_memory(network, settings, request.optimizer, request.sharding, walked)
    time = time_of(request, network, work) if request.gpu is not None else None
    return _State(network, walked, work, memory.peak.peak_bytes, time.seconds if time else None)


def _unfragmented(switch: Switch, base: _State, fragmentation_bytes: int) -> Saving:
    from tuneplan.planner.replay import ENOUGH_LAYERS, replay

    request = switch.request
    held = replay(base.network, request.settings, request.optimizer, layers=ENOUGH_LAYERS, expandable_segments=True)
    saved = fragmentation_bytes - held.fragmentation_bytes
    fits = _fits(request, base.network, base.allocated_bytes + held.fragmentation_bytes)
    seconds = None if base.seconds is None else 0.0
    return _saving(switch, saved, seconds, RESERVED, base, fits)


def _saving(switch: Switch, saved: int, seconds: float | None, of: str, base: _State, fits: bool | None) -> Saving:
    space = saved / base.allocated_bytes
    time = seconds / base.seconds if seconds is not None and base.seconds else 0.0
    return Saving(switch, saved, seconds, of, space + time, min(space, time) > -WORTH_NAMING, fits)


def _fits(request: Request, network: Network, reserved_bytes: int) -> bool | None:
    if request.capacity_bytes is None:
        return None
    runtime = runtime_of(request.gpu, request.sharding.data_parallel, network.quantized)
    return reserved_bytes + runtime.total_bytes <= request.capacity_bytes
