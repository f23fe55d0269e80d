"""Sensitivity: the same question for several values of one option, and the largest values that fit."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from tuneplan.planner.errors import InputError, TuneplanError, UnknownNameError
from tuneplan.planner.estimate import Estimate, estimate
from tuneplan.planner.request import LONGEST_SEQUENCE, Request

MOST_POINTS = 64
LARGEST_BATCH = 2**16
A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Axis:
    """What is varied: an option as on the command line, and its values."""

    option: str
    values: tuple[int, ...]

    @property
    def name(self) -> str:
        """As the option's value is called in Python and JSON."""
        return self.option.replace("-", "_")


@dataclass(frozen=True, slots=True)
class Point(Generic[A]):
    """An answer at one value; or why there is none."""

    value: int
    answer: A | None
    error: TuneplanError | None = None

    @property
    def reason(self) -> str:
        """Why there is no answer."""
        return str(self.error) if self.error else ""


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest values that fit the memory of a request, all else as it is; 0 where not even the smallest does.

    Attributes:
        micro_batch_size: sequences of a forward.
        seq_len: tokens of a sequence.
        context: the longest that the model's config states; `seq_len` does not go beyond it.
    """

    micro_batch_size: int
    seq_len: int
    context: int


def axis(text: str, options: tuple[str, ...]) -> Axis:
    """The axis of `seq-len=512..32768` (doubling), `rank=8,16,64` or `seq-len=1024..4096:1024` (steps).

    Raises:
        UnknownNameError: the option is not one of `options`.
        InputError: the values are none, or more than MOST_POINTS.
    """
    option, _, values = text.partition("=")
    option = option.strip().removeprefix("--").replace("_", "-")
    if option not in options:
        raise UnknownNameError("option to sweep", option, options, "--help")
    found = _values(values.strip(), text)
    if len(found) > MOST_POINTS:
        raise InputError(f"--sweep {text[:60]} has {len(found)} values; {MOST_POINTS} are the most, so take larger steps")
    return Axis(option, found)


def _values(text: str, given: str) -> tuple[int, ...]:
    match = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})(?::(\d{1,9}))?", text)
    if match is None:
        if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
            raise InputError(f"--sweep {given[:60]!r} names no values; write such as seq-len=512..32768 or rank=8,16,64")
        return tuple(sorted({int(piece) for piece in text.split(",")}))
    first, last, step = int(match.group(1)), int(match.group(2)), match.group(3)
    if not 1 <= first <= last or (step is not None and int(step) < 1):
        raise InputError(f"--sweep {given[:60]!r} goes nowhere; write the smaller value first, such as 512..32768")
    if step is not None:
        if (last - first) // int(step) >= MOST_POINTS:
            raise InputError(f"--sweep {given[:60]} has more than {MOST_POINTS} values; take larger steps")
        return tuple(range(first, last + 1, int(step)))
    found = [first]
    while found[-1] * 2 <= last:
        found.append(found[-1] * 2)
    return tuple(found)


def sweep(axis: Axis, answer: Callable[[int], A]) -> tuple[Point[A], ...]:
    """The answer at every value; a value that cannot be is a point with its reason.

    Raises:
        TuneplanError: no value can be; the first reason.
    """
    points: list[Point[A]] = []
    first: TuneplanError | None = None
    for value in axis.values:
        point = _point(value, answer)
        points.append(point)
        first = first or point.error
    if first is not None and all(point.answer is None for point in points):
        raise first
    return tuple(points)


def _point(value: int, answer: Callable[[int], A]) -> Point[A]:
    try:
        return Point(value, answer(value))
    except TuneplanError as error:
        return Point(value, None, error)


def limits(request: Request) -> Limits | None:
    """The largest batch and the longest context that fit; None without a memory to fit into, and for a model that is traced.

    Found by doubling and halving on whole estimates, the replay of the allocator included.
    """
    if request.capacity_bytes is None or request.spec.source is not None:
        return None
    context = request.spec.max_position_embeddings
    batch = _largest(lambda n: _with(request, micro_batch_size=n), 1, LARGEST_BATCH)
    length = _largest(lambda n: _with(request, seq_len=n), 2, min(context, LONGEST_SEQUENCE))
    return Limits(batch, length, context)


def _with(request: Request, **changes: Any) -> Request:
    return replace(request, settings=replace(request.settings, **changes), batch_lengths=())


def fits(found: Estimate) -> bool:
    """Whether an estimate stays within its request's memory, where it names one."""
    capacity = found.request.capacity_bytes
    return capacity is None or found.device_bytes <= capacity


def _largest(ask: Callable[[int], Request], least: int, most: int) -> int:
    """The largest value that fits, by doubling and then halving the gap; 0 where `least` does not."""

    def fit(value: int) -> bool:
        return fits(estimate(ask(value), advice=False))

    if most < least or not fit(least):
        return 0
    low = least
    while low < most and fit(min(2 * low, most)):
        low = min(2 * low, most)
    high = min(2 * low, most + 1)
    while high - low > max(1, low // 256):
        middle = (low + high) // 2
        low, high = (middle, high) if fit(middle) else (low, middle)
    return low
