"""A training step of the real code as a function of batch and length: recordings laid over each other, checked by one more."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tuneplan.planner.graph.tensor import round_block
from tuneplan.profiling.counts import Counts
from tuneplan.profiling.fallback.recording import Operator, Recording, Storage
from tuneplan.profiling.fallback.sizes import Form, constant, fit, near, of_batch

if TYPE_CHECKING:
    from tuneplan.profiling.step import StepTrace

RESIDUAL = 0.001
"""Most by which the peak may miss the held-out trace."""
SHORTEST = 32
MOST_BLOCK = 256
FARTHEST = 64
"""Batches up to so many times the traced one are taken from its form."""
Record = Callable[[int, int], Recording]


@dataclass(frozen=True, slots=True)
class Domain:
    """Where a program holds: batches and lengths, ends included."""

    batches: tuple[int, int]
    lengths: tuple[int, int]

    def covers(self, batch: int, length: int) -> bool:
        """Whether a point lies in it."""
        return self.batches[0] <= batch <= self.batches[1] and self.lengths[0] <= length <= self.lengths[1]


@dataclass(frozen=True, slots=True)
class Program:
    """A recording whose sizes are forms.

    Attributes:
        domain: where it holds.
        points: batches and lengths that were traced.
        residual: how far the peak was off at the held-out point, as a share; None where nothing was held out, at a single point.
        recording: everything but sizes; those in it are of the first point.
        sizes: of storages [bytes].
        flops: of operators.
        moved: bytes of operators.
    """

    domain: Domain
    points: tuple[tuple[int, int], ...]
    residual: float | None
    recording: Recording
    sizes: tuple[Form, ...]
    flops: tuple[Form, ...]
    moved: tuple[Form, ...]

    def step(self, batch: int, length: int) -> "StepTrace":
        """The step at a point, storages rounded as the CUDA allocator rounds them."""
        return stepped(self.recording, [form.at(batch, length) for form in self.sizes])

    def operators(self, batch: int, length: int) -> list[Operator]:
        """The operators at a point."""
        given = zip(self.recording.operators, self.flops, self.moved, strict=True)
        return [replace(op, flops=f.at(batch, length), moved=m.at(batch, length)) for op, f, m in given]

    @property
    def counts(self) -> Counts:
        """Parameters, whatever the batch."""
        return self.recording.counts


def described(domain: Domain, points: Sequence[tuple[int, int]], residual: float | None) -> str:
    """Which traces a program comes from, in words."""
    if residual is None:
        batch, length = points[0]
        return f"traced: the real code's step at {batch} x {length}"
    low, high = domain.lengths
    fitted = ", ".join(f"{batch} x {length}" for batch, length in points[:-1])
    batch, length = points[-1]
    return (
        f"traced: sizes of all storages fitted exactly over batch and length through traces at {fitted}; off by "
        f"{100 * residual:+.4f} % at {batch} x {length}, which was held out; lengths {low} to {high}"
    )


def stepped(recording: Recording, sizes: Sequence[int]) -> "StepTrace":
    """A recording with sizes as a traced step."""
    from tuneplan.profiling.step import STEP_PHASES, StepTrace
    from tuneplan.profiling.timeline import Timeline
    from tuneplan.profiling.tracker import NOWHERE, Allocation

    made = [
        Allocation(round_block(size), s.phase, s.op, s.module, NOWHERE, s.category)
        for s, size in zip(recording.storages, sizes, strict=True)
    ]
    entries = [(entry >= 0, made[entry if entry >= 0 else -1 - entry]) for entry in recording.log]
    timeline = Timeline.made(entries, recording.phases)
    return StepTrace({name: timeline.peak(*timeline.shown[name]) for name in STEP_PHASES}, timeline)


def program(record: Record, batch: int, length: int, from_one: bool = False) -> Program:
    """The program around a point: four traces fitted and a fifth to check them, or the point alone where that cannot be.

    The lengths go down to a third of the asked one; where the code takes other ways there (a window that is not filled), to three
    quarters of it; and where it does at any other length, to this one alone.

    Args:
        record: traces a batch and a length.
        batch: above 1, if it is to be fitted: one sequence takes a way of its own, on which a slice needs no copy.
        length: tokens of each sequence.
        from_one: the fifth trace is of one sequence, so that the program holds there too, if its peak is met.

    Raises:
        InputError, CannotRunError: as the recordings do.
    """
    here = record(batch, length)
    if length >= SHORTEST:
        for lowest in (length // 3, 3 * length // 4):
            found = _around(record, here, batch, length, lowest, from_one)
            if found is not None:
                return found
    return _over_batches(record, here, batch, length, from_one) or _alone(here, batch, length)


def _alone(here: Recording, batch: int, length: int) -> Program:
    domain = Domain((batch, batch), (length, length))
    sizes, flops, moved = (tuple(map(constant, values_of(here))) for values_of in (_sizes, _flops, _moved))
    return Program(domain, ((batch, length),), None, here, sizes, flops, moved)


def _around(record: Record, here: Recording, batch: int, length: int, lowest: int, from_one: bool) -> Program | None:
    span = length - lowest
    block = min(2 ** ((span // 4).bit_length() - 1), MOST_BLOCK)
    first, second = (_odd(lowest + part, block) for part in (0, 5 * span // 8))
    held = _odd(lowest + 3 * span // 8, 8)
    lengths = (first, second, length)
    rows = [record(batch, first)]
    if not _alike(here, rows[0]):
        return None
    rows += [record(batch, second), here]
    double = record(2 * batch, first)
    if not _alike(here, rows[1]):
        return None
    twice: Recording | None = double if _alike(here, double) else None
    forms = _forms(rows, twice, batch, lengths)
    if forms is None:
        return None
    from_one = from_one and twice is not None
    checked = (1 if from_one else batch if twice is None else 2 * batch, held)
    theirs = record(*checked)
    if not from_one and not _alike(here, theirs):
        return None
    sizes, flops, moved = forms
    ours = stepped(here, [form.at(*checked) for form in sizes]).peak_bytes
    residual = ours / stepped(theirs, theirs.sizes).peak_bytes - 1
    if abs(residual) > RESIDUAL:
        return None
    least = 1 if from_one else min(batch, 2)
    batches = (batch, batch) if twice is None else (least, FARTHEST * batch)
    points = ((batch, first), (batch, second), (batch, length), (2 * batch, first), checked)
    return Program(Domain(batches, (first, length)), points, residual, here, sizes, flops, moved)


def _over_batches(record: Record, here: Recording, batch: int, length: int, from_one: bool) -> Program | None:
    """A program of one length, for code whose way depends on it: a loop over tokens or chunks."""
    double = record(2 * batch, length)
    if not _alike(here, double):
        return None
    try:
        sizes, flops, moved = (
            tuple(of_batch(a, b, batch) for a, b in zip(of(here), of(double), strict=True)) for of in (_sizes, _flops, _moved)
        )
    except ValueError:
        return None
    checked = (1 if from_one else 3 * batch, length)
    theirs = record(*checked)
    ours = stepped(here, [form.at(*checked) for form in sizes]).peak_bytes
    residual = ours / stepped(theirs, theirs.sizes).peak_bytes - 1
    if abs(residual) > RESIDUAL or not (from_one or _alike(here, theirs)):
        return None
    domain = Domain((1 if from_one else min(batch, 2), FARTHEST * batch), (length, length))
    return Program(domain, ((batch, length), (2 * batch, length), checked), residual, here, sizes, flops, moved)


def _odd(length: int, block: int) -> int:
    """A length near by that is a little more than a multiple: each rounding of `sizes.MULTIPLES` makes another number of it."""
    return length - length % block + 5


def _alike(a: Recording, b: Recording) -> bool:
    """Whether both took the same way: births and deaths in one order, by the same operators for the same purposes."""

    def plain(storages: tuple[Storage, ...]) -> list[tuple[str, str, int]]:
        return [(s.phase, s.op, s.category) for s in storages]

    def kinds(operators: tuple[Operator, ...]) -> list[tuple[str, str]]:
        return [(op.phase, op.kind) for op in operators]

    return a.log == b.log and plain(a.storages) == plain(b.storages) and kinds(a.operators) == kinds(b.operators)


Forms = tuple[tuple[Form, ...], tuple[Form, ...], tuple[Form, ...]]


def _forms(rows: Sequence[Recording], twice: Recording | None, batch: int, lengths: Sequence[int]) -> Forms | None:
    """Forms of sizes, FLOPs and moved bytes, the last of which may be near ones; None where a size or FLOPs have none."""
    result = []
    for values_of in (_sizes, _flops, _moved):
        known: dict[tuple[Any, ...], Form | None] = {}
        columns = [values_of(row) for row in rows]
        doubled: Sequence[int | None] = [None] * len(columns[0]) if twice is None else values_of(twice)
        found = []
        for *values, double in zip(*columns, doubled, strict=True):
            key = (*values, double)
            if key not in known:
                exact = fit(values, double, batch, lengths)
                known[key] = near(values, double, batch, lengths) if exact is None and values_of is _moved else exact
            form = known[key]
            if form is None:
                return None
            found.append(form)
        result.append(tuple(found))
    return result[0], result[1], result[2]


def _sizes(recording: Recording) -> Sequence[int]:
    return recording.sizes


def _flops(recording: Recording) -> Sequence[int]:
    return [op.flops for op in recording.operators]


def _moved(recording: Recording) -> Sequence[int]:
    return [op.moved for op in recording.operators]
