"""A size as a function of batch and length: exact forms through a few traced points.

Tensors have the batch as a dimension or not, and lengths to the power 0, 1 or 2, some rounded up to a multiple by a kernel or a
chunked scan. Each form has whole coefficients and must pass through every point, else there is none.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

MULTIPLES = (1, 128, 256, 64, 32, 16, 8)


class Form(NamedTuple):
    """`base + batch ** power * (c0 + c1 * u + c2 * u * t)`.

    `u` is the length rounded up to `multiple`; `t` is `u`, or where `mixed` the length itself.
    """

    base: int
    power: int
    multiple: int
    mixed: int
    c0: int
    c1: int
    c2: int

    def at(self, batch: int, length: int) -> int:
        """The value at a batch and a length."""
        u = round_up(length, self.multiple)
        t = length if self.mixed else u
        return self.base + (self.c0 + self.c1 * u + self.c2 * u * t) * (batch if self.power else 1)


def constant(value: int) -> Form:
    """The form of what depends on neither."""
    return Form(value, 0, 1, 0, 0, 0, 0)


def round_up(length: int, multiple: int) -> int:
    """The next multiple."""
    return -(-length // multiple) * multiple


def fit(values: Sequence[int], doubled: int | None, batch: int, lengths: Sequence[int]) -> Form | None:
    """The form through the values at three lengths and, at the first length, at twice the batch.

    Args:
        values: at `batch` and each of `lengths`.
        doubled: at `2 * batch` and the first length; None where the form is for this batch alone.
        batch: of the values.
        lengths: three different ones, of which two at least are no multiple of 8.
    """
    first = values[0]
    base = power = 0
    if doubled is not None and doubled != first:
        base, power = 2 * first - doubled, 1
        values = [value - base for value in values]
        if any(value % batch for value in values):
            return None
        values = [value // batch for value in values]
    if len(set(values)) == 1:
        return Form(base, power, 1, 0, values[0], 0, 0)
    return _of_length((base, power), values, lengths)


def of_batch(value: int, doubled: int, batch: int) -> Form:
    """The form through the values at a batch and at twice as much, at one length: that of a line."""
    slope, rest = divmod(doubled - value, batch)
    if rest:
        raise ValueError("no whole number of bytes a sequence")
    return Form(value - slope * batch, 1, 1, 0, slope, 0, 0)


def near(values: Sequence[int], doubled: int | None, batch: int, lengths: Sequence[int]) -> Form:
    """A form close to the values, for what has no exact one: the part that does not grow with the batch is taken as constant."""
    base, power = 0, 0
    if doubled is not None and doubled > values[0]:
        base, power = min(max(2 * values[0] - doubled, 0), values[0]), 1
    share = batch if power else 1
    slope = round((values[2] - values[0]) / (lengths[2] - lengths[0]) / share)
    return Form(base, power, 1, 0, (values[0] - base) // share - slope * lengths[0], slope, 0)


def _of_length(head: tuple[int, int], values: Sequence[int], lengths: Sequence[int]) -> Form | None:
    for multiple in MULTIPLES:
        u = [round_up(length, multiple) for length in lengths]
        line = _line(values, u)
        if line is not None:
            return Form(*head, multiple, 0, *line, 0)
    for multiple in MULTIPLES:
        u = [round_up(length, multiple) for length in lengths]
        for mixed, t in ((0, u), (1, list(lengths))):
            ratios = {Fraction(value, a * b) for value, a, b in zip(values, u, t, strict=True)}
            if len(ratios) == 1 and (ratio := ratios.pop()).denominator == 1:
                return Form(*head, multiple, mixed, 0, 0, int(ratio))
    return _parabola(head, values, lengths)


def _line(values: Sequence[int], u: Sequence[int]) -> tuple[int, int] | None:
    if u[0] == u[2]:
        return None
    slope = Fraction(values[2] - values[0], u[2] - u[0])
    if slope.denominator != 1 or values[1] != values[0] + int(slope) * (u[1] - u[0]):
        return None
    return values[0] - int(slope) * u[0], int(slope)


def _parabola(head: tuple[int, int], values: Sequence[int], lengths: Sequence[int]) -> Form | None:
    a, b, c = lengths
    steep = Fraction(values[1] - values[0], b - a)
    curve = (Fraction(values[2] - values[0], c - a) - steep) / (c - b)
    slope = steep - curve * (a + b)
    if curve.denominator != 1 or slope.denominator != 1 or curve <= 0:
        return None
    return Form(*head, 1, 0, values[0] - int(slope) * a - int(curve) * a * a, int(slope), int(curve))
