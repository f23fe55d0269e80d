"""From a tracker's log to a `Reading`: one walk over the last step, places named so that they outlive edits."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import CodeType, FrameType

from tuneplan.planner.graph.tensor import CATEGORIES
from tuneplan.profiling.regression.reading import Place, Reading
from tuneplan.profiling.tracker import Allocation, StorageTracker

_OWN = str(Path(__file__).parents[2])
_LIBRARY_FOLDERS = ("site-packages", "dist-packages")
Line = tuple[CodeType, int]


class ProjectTracker(StorageTracker):
    """A storage tracker that also remembers which line of the user's project asked for a storage.

    Attributes:
        callers: code and line number by the id of the allocation, for those that have one.
    """

    def __init__(self, root: Path, device_type: str = "meta", vocabulary: int = 0) -> None:
        """Arguments: the project's folder; the others as for `StorageTracker`."""
        super().__init__(device_type, vocabulary=vocabulary)
        self._root = root
        self._in_project: dict[CodeType, bool] = {}
        self.callers: dict[int, Line] = {}

    def _birth(self, size_bytes: int, op: str, category: int) -> Allocation:
        allocation = super()._birth(size_bytes, op, category)
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            known = self._in_project.get(code)
            if known is None:
                known = self._in_project[code] = in_project(code.co_filename, self._root)
            if known:
                self.callers[id(allocation)] = (code, frame.f_lineno)
                break
            frame = frame.f_back
        return allocation


def in_project(filename: str, root: Path) -> bool:
    """Whether a file is the user's own: under the root, and no installed library or part of this package."""
    path = Path(filename)
    foreign = filename.startswith((_OWN, "<")) or any(folder in path.parts for folder in _LIBRARY_FOLDERS)
    return not foreign and path.is_relative_to(root) and not path.is_relative_to(sys.prefix)


def short_path(filename: str, root: Path) -> str:
    """A file's path as another machine knows it: from the project's root, or from the folder of installed libraries."""
    path = Path(filename)
    for folder in _LIBRARY_FOLDERS:
        if folder in path.parts:
            last = len(path.parts) - 1 - path.parts[::-1].index(folder)
            return "/".join(path.parts[last + 1 :])
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def read(
    log: Sequence[tuple[bool, Allocation]],
    start: int,
    stop: int,
    root: Path,
    callers: Mapping[int, Line] | None = None,
    facts: Mapping[str, int | bool | str] | None = None,
    previous_start: int | None = None,
) -> Reading:
    """The step between two indices of a log.

    Args:
        log: births (True) and deaths (False) in order, from the first on.
        start: of the step that is read.
        stop: behind its last entry.
        root: of the user's project.
        callers: lines of the user's code by allocation.
        facts: as in `Reading`.
        previous_start: of the step before, if there is one, to tell what every step piles up.
    """
    size = len(CATEGORIES)
    levels = [0] * size
    for born, a in log[:start]:
        levels[a.category] += a.size_bytes if born else -a.size_bytes
    before = sum(levels)
    live = peak = before
    at_peak, highest = tuple(levels), list(levels)
    moments, peak_moment, reached = [start] * size, start, ""
    phase = log[start][1].phase if start < len(log) else ""
    phases: dict[str, int] = {}
    current = phase
    for index, (born, a) in enumerate(log[start:stop], start):
        category = a.category
        levels[category] += a.size_bytes if born else -a.size_bytes
        live += a.size_bytes if born else -a.size_bytes
        if not born:
            continue
        current = a.phase
        phases[current] = max(phases.get(current, 0), live)
        if levels[category] > highest[category]:
            highest[category], moments[category] = levels[category], index + 1
        if live > peak:
            peak, at_peak, peak_moment, phase = live, tuple(levels), index + 1, current
            reached = f"{a.module}.{a.op}".strip(".")
    moments_of = {name: moment for name, moment, most in zip(CATEGORIES, moments, highest, strict=True) if most}
    found = {name: _places(_live(log, moment), start, log, root, callers or {}, name) for name, moment in moments_of.items()}
    earlier = _total(log, previous_start) if previous_start is not None else before
    return Reading(
        peak_bytes=peak,
        phase=phase,
        op=reached,
        at_peak=dict(zip(CATEGORIES, at_peak, strict=True)),
        highest=dict(zip(CATEGORIES, highest, strict=True)),
        phases=phases,
        kept_per_step_bytes=before - earlier,
        places=found,
        peak_places=_places(_live(log, peak_moment), start, log, root, callers or {}),
        facts=dict(facts or {}),
    )


def _total(log: Sequence[tuple[bool, Allocation]], stop: int) -> int:
    return sum(a.size_bytes if born else -a.size_bytes for born, a in log[:stop])


def _live(log: Sequence[tuple[bool, Allocation]], stop: int) -> list[Allocation]:
    live: dict[int, Allocation] = {}
    for born, a in log[:stop]:
        if born:
            live[id(a)] = a
        else:
            del live[id(a)]
    return list(live.values())


def _places(
    live: Sequence[Allocation],
    start: int,
    log: Sequence[tuple[bool, Allocation]],
    root: Path,
    callers: Mapping[int, Line],
    only: str = "",
) -> tuple[Place, ...]:
    """Storages by place, most bytes first."""
    fresh = {id(a) for born, a in log[start:] if born}
    groups: dict[tuple[str, str, str, str], list[Allocation]] = {}
    for a in live:
        category = CATEGORIES[a.category]
        if only and category != only:
            continue
        module = ".".join("*" if piece.isdigit() else piece for piece in a.module.split("."))
        groups.setdefault((category, module, a.op, _function(a, root)), []).append(a)
    found = []
    for (category, module, op, function), held in groups.items():
        largest = max(held, key=lambda a: a.size_bytes)
        transient = category in ("activations", "logits", "temporary")
        earlier = sum(id(a) not in fresh for a in held) if transient else 0
        caller = callers.get(id(largest))
        line = _line(largest.site, root)
        called = _line(caller, root) if caller else ""
        total = sum(a.size_bytes for a in held)
        found.append(Place(category, module, op, function, line, called, total, len(held), earlier))
    return tuple(sorted(found, key=lambda p: (-p.size_bytes, p.category, p.key)))


def _function(a: Allocation, root: Path) -> str:
    code, _ = a.site
    return f"{short_path(code.co_filename, root)}:{code.co_name}" if code is not None and not _own(code) else ""


def _line(site: tuple[CodeType | None, int], root: Path) -> str:
    code, number = site
    return f"{short_path(code.co_filename, root)}:{number}" if code is not None and not _own(code) else ""


def _own(code: CodeType) -> bool:
    """Whether it is this package's: what runs a planned step is not what asks for memory."""
    return code.co_filename.startswith(_OWN)
