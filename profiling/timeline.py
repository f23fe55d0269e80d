"""Live bytes over a tracked step: by category and phase, what stands at the peak, and who asked for it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tuneplan.planner.graph.tensor import CATEGORIES
from tuneplan.profiling.tracker import Allocation, StorageTracker


@dataclass(frozen=True, slots=True)
class PhasePeak:
    """Most live bytes in a phase, the operator that reached them, and what is left at its end [bytes].

    Attributes:
        peak_bytes: most live bytes.
        op: module and operator whose birth reached them; "" if the phase only inherits.
        end_bytes: live bytes when it ends.
        levels: bytes by category at the peak, in the order of CATEGORIES.
    """

    peak_bytes: int
    op: str
    end_bytes: int
    levels: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Holder:
    """Bytes that one place in the program holds at a moment: `count` storages of `op` in `module`, asked for at `line`."""

    size_bytes: int
    count: int
    category: str
    module: str
    op: str
    line: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """What a tracker wrote down.

    Attributes:
        log: births (True) and deaths (False), in order.
        spans: phases as (name, first index, index behind the last), in order; a name comes again with every step.
        shown: the spans by name of the step that is reported: of all but the first (when optimizer states are made) the one with
            most live bytes, the last of equal ones; and "load".
    """

    log: Sequence[tuple[bool, Allocation]] = field(repr=False)
    spans: Sequence[tuple[str, int, int]]
    shown: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, tracker: StorageTracker) -> "Timeline":
        """The record of a tracker so far."""
        return cls.made(tracker.log, tracker.phases)

    @classmethod
    def made(cls, entries: Sequence[tuple[bool, Allocation]], phases: Sequence[tuple[str, int]]) -> "Timeline":
        """A record from its entries, and the phases with the index at which each starts."""
        log = tuple(entries)
        starts = [*phases, ("end", len(log))]
        spans = [(name, start, starts[i + 1][1]) for i, (name, start) in enumerate(starts[:-1])]
        steps: list[dict[str, tuple[int, int]]] = [{}]
        for name, start, stop in spans:
            if name == "end":
                steps.append({})
            else:
                steps[-1][name] = (start, stop)
        load = steps[0].pop("load", (0, 0))
        done = [step for step in steps if step]
        live = list(cls(log, spans, {}).live())
        shown = max(reversed(done[1:] or done), key=lambda step: _highest(live, step), default={})
        return cls(log, spans, {**shown, "load": load})

    def live(self) -> Iterator[int]:
        """Live bytes after each entry of the log."""
        total = 0
        for born, allocation in self.log:
            total += allocation.size_bytes if born else -allocation.size_bytes
            yield total

    def peak(self, start: int = 0, stop: int | None = None) -> PhasePeak:
        """The peak between two indices of the log; what was live before counts too."""
        stop = len(self.log) if stop is None else stop
        levels = [0] * len(CATEGORIES)
        for born, allocation in self.log[:start]:
            levels[allocation.category] += allocation.size_bytes if born else -allocation.size_bytes
        live = highest = sum(levels)
        best, op = tuple(levels), ""
        for born, allocation in self.log[start:stop]:
            if not born:
                levels[allocation.category] -= allocation.size_bytes
                live -= allocation.size_bytes
                continue
            levels[allocation.category] += allocation.size_bytes
            live += allocation.size_bytes
            if live > highest:
                highest, best, op = live, tuple(levels), f"{allocation.module}.{allocation.op}".strip(".")
        return PhasePeak(highest, op, live, best)

    def at_peak(self, start: int, stop: int) -> list[Allocation]:
        """The storages that are live at the peak between two indices of the log, oldest first."""
        levels = list(self.live())
        top = max(range(max(start - 1, 0), stop), key=levels.__getitem__, default=-1)
        live: dict[int, Allocation] = {}
        for born, allocation in self.log[: top + 1]:
            if born:
                live[id(allocation)] = allocation
            else:
                del live[id(allocation)]
        return list(live.values())


def _highest(live: Sequence[int], step: Mapping[str, tuple[int, int]]) -> int:
    return max((max(live[start:stop], default=0) for start, stop in step.values()), default=0)


def holders(allocations: Sequence[Allocation]) -> list[Holder]:
    """Storages by the place that asked for them, most bytes first; layers of a stack are one place (`layers.*`)."""
    groups: dict[tuple[str, str, str, str], list[int]] = {}
    for a in allocations:
        module = ".".join("*" if piece.isdigit() else piece for piece in a.module.split("."))
        entry = groups.setdefault((CATEGORIES[a.category], module, a.op, a.line), [0, 0])
        entry[0] += a.size_bytes
        entry[1] += 1
    found = [Holder(size, count, *key) for key, (size, count) in groups.items()]
    return sorted(found, key=lambda h: -h.size_bytes)
