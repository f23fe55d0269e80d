"""An estimate and a trace of one configuration, side by side: by phase, by component, and by module for what a forward keeps."""

from dataclasses import dataclass
from typing import Any

from tuneplan.planner.estimate import Estimate
from tuneplan.planner.graph.tensor import ACTIVATIONS, CATEGORIES, LOGITS
from tuneplan.profiling.step import STEP_PHASES
from tuneplan.profiling.trace import Traced

_HEAD = "head and loss"
_NAMELESS = ("model", "act_fn", "rotary_emb")
_OF_ADAPTERS = ("base_layer", "lora_", "base_model", "default")


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes of one thing, estimated and traced."""

    name: str
    estimated_bytes: int
    traced_bytes: int

    @property
    def difference_bytes(self) -> int:
        """Estimated less traced."""
        return self.estimated_bytes - self.traced_bytes

    @property
    def percent(self) -> float:
        """The difference in percent of what was traced; 0 where both are 0."""
        if not self.traced_bytes:
            return 0.0 if not self.estimated_bytes else float("inf")
        return 100 * self.difference_bytes / self.traced_bytes

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "name": self.name,
            "estimated_bytes": self.estimated_bytes,
            "traced_bytes": self.traced_bytes,
            "difference_bytes": self.difference_bytes,
        }


@dataclass(frozen=True, slots=True)
class Verification:
    """Where an estimate and a trace agree and where not.

    Attributes:
        peak: of live bytes over the step.
        phases: peaks of each phase.
        components: at the step's peak.
        modules: what the forward leaves behind for the backward, by module; layers taken together.
    """

    peak: Gap
    phases: tuple[Gap, ...]
    components: tuple[Gap, ...]
    modules: tuple[Gap, ...]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        rows = {name: [gap.to_json() for gap in getattr(self, name)] for name in ("phases", "components", "modules")}
        return {"allocated": {**self.peak.to_json(), "percent": self.peak.percent}, **rows}


def verify(estimate: Estimate, traced: Traced) -> Verification:
    """Lay the two side by side; the peak is that of forward, backward and update, which both walk."""
    names = [name for name in STEP_PHASES if name in traced.phases]
    planned = estimate.memory.phases
    highest = max(names, key=lambda name: int(planned[name].peak_bytes))
    components = zip(CATEGORIES, planned[highest].levels, traced.phases[traced.step.peak_phase].levels, strict=True)
    ours, theirs = _estimated_modules(estimate), {} if traced.extended_from else _traced_modules(traced)
    modules = [Gap(name or "(outside the modules)", ours.get(name, 0), theirs.get(name, 0)) for name in {**ours, **theirs}]
    return Verification(
        Gap("peak", int(planned[highest].peak_bytes), traced.phases[traced.step.peak_phase].peak_bytes),
        tuple(Gap(name, int(planned[name].peak_bytes), traced.phases[name].peak_bytes) for name in names),
        tuple(Gap(name, int(a), b) for name, a, b in components if a or b),
        tuple(sorted(modules, key=lambda gap: -abs(gap.difference_bytes))) if theirs else (),
    )


def _estimated_modules(estimate: Estimate) -> dict[str, int]:
    """Bytes that autograd keeps at the end of the forward, by the module whose op made them."""
    found: dict[str, int] = {}
    for run in estimate.network.runs:
        kept = {id(s) for op in run.block.ops for s in op.saved} if not run.checkpointed else set()
        if run.block.exit is not None and run.checkpointed and not run.reversible:
            kept.add(id(run.block.exit.storage))
        for op in run.block.ops:
            storage = op.allocates
            if storage is not None and id(storage) in kept and storage.category in (ACTIVATIONS, LOGITS):
                name = _HEAD if storage.category == LOGITS else _short(op.name.rpartition(".")[0])
                found[name] = found.get(name, 0) + storage.nbytes * run.count
    return found


def _traced_modules(traced: Traced) -> dict[str, int]:
    """The same of the real code: what the forward made and the backward's first moment still holds."""
    timeline = traced.step.timeline
    start, stop = timeline.shown["forward"]
    live = {id(a): a for born, a in timeline.log[start:stop] if born}
    for born, a in timeline.log[start:stop]:
        if not born:
            live.pop(id(a), None)
    found: dict[str, int] = {}
    for a in live.values():
        if a.category in (ACTIVATIONS, LOGITS):
            name = _HEAD if a.category == LOGITS else _short(a.module)
            found[name] = found.get(name, 0) + a.size_bytes
    return found


def _short(path: str) -> str:
    """The path within a layer, without the names that PEFT puts around modules."""
    pieces = path.split(".")
    if any(piece.isdigit() for piece in pieces):
        last = max(i for i, piece in enumerate(pieces) if piece.isdigit())
        pieces = pieces[last + 1 :]
    pieces = [p for p in pieces if not p.startswith(_OF_ADAPTERS) and p not in _NAMELESS]
    return ".".join(pieces)
