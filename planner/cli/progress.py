"""A progress bar on stderr for what takes longer than a second; nothing where stderr is no terminal."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE_SECONDS = 1.0


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[int], None] | None]:
    """Gives a function that is told of every step forward, or None where nobody would see it.

    Args:
        total: steps in all.
        what: they are, such as "candidates".
    """
    if not sys.stderr.isatty():
        yield None
        return
    bar = _Bar(total, what)
    try:
        yield bar.told
    finally:
        bar.close()


class _Bar:
    """Appears after PATIENCE_SECONDS, so that what is quick shows nothing and loads nothing."""

    def __init__(self, total: int, what: str) -> None:
        self._total, self._what, self._done = total, what, 0
        self._start = time.monotonic()
        self._shown: Any = None
        self._task: Any = None

    def told(self, steps: int) -> None:
        """So many more are done."""
        self._done += steps
        if self._shown is None and time.monotonic() - self._start > PATIENCE_SECONDS:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn(self._what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._shown = Progress(*columns, console=Console(stderr=True), transient=True)
            self._shown.start()
            self._task = self._shown.add_task(self._what, total=self._total)
        if self._shown is not None:
            self._shown.update(self._task, completed=self._done)

    def close(self) -> None:
        """Take it away."""
        if self._shown is not None:
            self._shown.stop()
