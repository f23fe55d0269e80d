"""The largest micro-batch that fits, found by trying: every trial is a real step, or a prediction of one."""

from collections.abc import Callable

MOST = 4096


def largest(fits: Callable[[int], bool], start: int = 1, most: int = MOST) -> int:
    """The largest batch that fits, where a larger one never fits if a smaller does not.

    Args:
        fits: tries a batch.
        start: the batch that is tried first, best a prediction: the fewer trials the closer it is.
        most: no batch above it is tried.

    Returns:
        0 where not even one sequence fits.
    """
    low, high = 0, most + 1
    batch, stride = min(max(start, 1), most), 1
    while high - low > 1:
        if fits(batch):
            low = batch
        else:
            high = batch
        if high > most and low < most:
            batch = min(low + stride, most)
        elif low == 0 and high > 1:
            batch = max(high - stride, 1)
        else:
            batch = (low + high) // 2
        stride *= 2
    return low
