"""A reading against what was recorded: what moved, whether it passes its limits, who holds the new bytes, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tuneplan.planner.graph.tensor import CATEGORIES
from tuneplan.profiling.regression.baseline import Recorded, totals
from tuneplan.profiling.regression.cases import Case
from tuneplan.profiling.regression.reading import Place, Reading

PEAK, KEPT = "peak", "kept per step"
Status = Literal["ok", "regression", "error", "recorded"]


@dataclass(frozen=True, slots=True)
class Change:
    """One quantity before and now [bytes].

    Attributes:
        name: "peak", the name of a component, or "kept per step".
        before: of the baseline.
        now: of this run.
        allowed: the most that passes; None where nothing limits it.
    """

    name: str
    before: int
    now: int
    allowed: int | None

    @property
    def difference_bytes(self) -> int:
        """Growth, or shrinkage below zero."""
        return self.now - self.before

    @property
    def percent(self) -> float | None:
        """Growth in percent; None from nothing."""
        return 100 * self.difference_bytes / self.before if self.before else None

    @property
    def exceeded(self) -> bool:
        """Whether it is a regression."""
        return self.allowed is not None and self.now > self.allowed


@dataclass(frozen=True, slots=True)
class NewBytes:
    """A place that holds more than it did.

    Attributes:
        place: the place as it is now.
        extra_bytes: more than in the baseline.
        how: in words, what about it is new.
    """

    place: Place
    extra_bytes: int
    how: str


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a case.

    Attributes:
        case: the case.
        status: "ok", "regression", "error" (it could not run) or "recorded" (by an update).
        changes: every quantity that is compared; empty where the case did not run.
        new_bytes: who holds what is new, most bytes first.
        causes: in words, the most certain first.
        message: of an error, or what was recorded.
    """

    case: Case
    status: Status
    changes: Sequence[Change] = ()
    new_bytes: Sequence[NewBytes] = ()
    causes: Sequence[str] = ()
    message: str = ""

    @property
    def exceeded(self) -> list[Change]:
        """The quantities that regressed."""
        return [change for change in self.changes if change.exceeded]


def compare(
    case: Case, reading: Reading, recorded: Recorded, versions: Mapping[str, str], recorded_versions: Mapping[str, str]
) -> Result:
    """Lay a reading beside the baseline.

    Args:
        case: its limits.
        reading: of now.
        recorded: of the baseline.
        versions: installed now.
        recorded_versions: when the baseline was written.
    """
    changes = _changes(case, reading, recorded)
    if not any(change.exceeded for change in changes):
        return Result(case, "ok", changes)
    found = new_bytes(reading, recorded, [change.name for change in changes if change.exceeded])
    causes = _causes(case, reading, recorded, found, _moved(versions, recorded_versions))
    return Result(case, "regression", changes, found, causes)


def _changes(case: Case, reading: Reading, recorded: Recorded) -> list[Change]:
    """The peak, each component's highest, and what steps pile up.

    A component without limits of its own may grow by as many bytes as the peak may.
    """
    limits = case.limits
    growth = limits.model_copy(update={"max_bytes": None}).allowed(recorded.peak_bytes)
    room = growth - recorded.peak_bytes if growth is not None else None
    changes = [Change(PEAK, recorded.peak_bytes, reading.peak_bytes, limits.allowed(recorded.peak_bytes))]
    named = [name for name in (*CATEGORIES, "unattributed") if name in reading.highest or name in recorded.highest]
    for name in named:
        before, now = recorded.highest.get(name, 0), reading.highest.get(name, 0)
        own = case.component_limits.get(name)
        allowed = own.allowed(before) if own is not None else before + room if room is not None else None
        if before or now:
            changes.append(Change(name, before, now, allowed))
    kept = recorded.kept_per_step_bytes
    if kept or reading.kept_per_step_bytes:
        changes.append(Change(KEPT, kept, reading.kept_per_step_bytes, kept + room if room is not None else None))
    return changes


def new_bytes(reading: Reading, recorded: Recorded, grown: Sequence[str]) -> list[NewBytes]:
    """The places that hold more than the baseline says, most new bytes first.

    Args:
        reading: of now.
        recorded: of the baseline.
        grown: the quantities that regressed; components among them are searched first.
    """
    components = [name for name in grown if name in reading.places]
    if not components:
        components = [n for n, size in reading.at_peak.items() if size > recorded.at_peak.get(n, 0)]
    found: list[NewBytes] = []
    for category in components:
        before = recorded.places.get(category, {})
        now = [place for place in reading.places.get(category, ()) if place.category == category]
        sums = totals(now)
        for place in now:
            extra = min(place.size_bytes, sums[place.key] - before.get(place.key, 0))
            if extra > 0:
                found.append(NewBytes(place, extra, _how(place, before.get(place.key))))
    if not found:  # no place grew: something lives longer, so that two things that took turns now overlap
        more = {name: size - recorded.at_peak.get(name, 0) for name, size in reading.at_peak.items()}
        late = [place for place in reading.peak_places if more.get(place.category, 0) > 0]
        found = [NewBytes(p, min(p.size_bytes, more[p.category]), "alive at the peak, which it was not") for p in late]
    return sorted(found, key=lambda new: -new.extra_bytes)


def _how(place: Place, before: int | None) -> str:
    if place.earlier:
        return f"{place.earlier} of {place.count} kept from an earlier step"
    return "new" if before is None else f"grew from {before:,} bytes"


def _moved(versions: Mapping[str, str], before: Mapping[str, str]) -> list[str]:
    """Packages whose version is another, in words."""
    names = sorted({*versions, *before})
    pairs = [(name, before.get(name, "none"), versions.get(name, "none")) for name in names]
    return [f"{name} {old} -> {new}" for name, old, new in pairs if old != new]


def _causes(case: Case, reading: Reading, recorded: Recorded, found: Sequence[NewBytes], moved: Sequence[str]) -> list[str]:
    """What explains the growth: a fact that changed, a loop that keeps things, other versions."""
    causes = []
    for name in sorted({*reading.facts, *recorded.facts}):
        old, new = recorded.facts.get(name), reading.facts.get(name)
        if old != new:
            causes.append(f"{name.replace('_', ' ')} changed: {_word(old)} -> {_word(new)}")
    kept = reading.kept_per_step_bytes
    if kept > recorded.kept_per_step_bytes:
        held = next((new.place for new in found if new.place.earlier), None)
        where = f", such as what {held.caller or held.line} makes" if held else ""
        causes.append(f"every step leaves {kept:,} bytes behind{where}: something keeps tensors alive across steps")
    elif any(new.place.earlier for new in found):
        causes.append("tensors of the step before are still alive: something keeps them across steps")
    if moved:
        own = sum(new.extra_bytes for new in found if new.place.caller and new.place.caller == new.place.line)
        whole = sum(new.extra_bytes for new in found)
        if not case.entry_point and not causes:
            causes.insert(0, f"versions changed: {', '.join(moved)}; no code of yours is part of this case, so that is the cause")
        elif not causes and 2 * own < whole:
            causes.insert(0, f"versions changed: {', '.join(moved)}; the new bytes are in library code: the likely cause")
        else:
            causes.append(f"versions changed too: {', '.join(moved)}; the first to look at is the code above")
    return causes


def _word(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else "none" if value is None else str(value)
