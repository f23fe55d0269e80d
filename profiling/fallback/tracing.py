"""Making programs for a search, here or in several processes. Imports torch."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.profiling.fallback.codec import encode
from tuneplan.profiling.fallback.program import program
from tuneplan.profiling.fallback.recorder import record
from tuneplan.profiling.fallback.recording import Recording
from tuneplan.profiling.fallback.source import STEPS, hush
from tuneplan.profiling.quiet import quiet
from tuneplan.profiling.subject import Subject
from tuneplan.profiling.trace import CannotRunError

MOST_WORKERS = 8
Result = tuple[list[dict[str, Any]], str]


def traced(subject: Subject, batch: int, length: int, told: Callable[[], None] = lambda: None) -> Result:
    """Programs around a point as `codec.encode` gives them; or none and why.

    Two, where one sequence takes another way than several, so that its peak is not theirs at a batch of one.

    `told`: called when the first trace is done, so that more will follow.
    """
    quiet()
    first = [told]
    known: dict[tuple[int, int], Recording] = {}

    def recorded(batch: int, length: int) -> Recording:
        if (batch, length) not in known:
            known[batch, length] = record(subject, batch, length, STEPS)
            while first:
                first.pop()()
        return known[batch, length]

    try:
        found = [program(recorded, max(batch, 2), length, from_one=True)]
        if not found[0].domain.covers(batch, length):
            found = [program(recorded, batch, length), program(recorded, 2, length)]
    except InputError as error:
        return [], str(error)
    except CannotRunError as error:
        return [], f"the training step of {subject.id} cannot run on the meta device: {error}"
    return [encode(each) for each in found], ""


def traced_together(wanted: Sequence[tuple[Subject, int, int]]) -> Iterator[tuple[int, Result]]:
    """Several of them, in as many processes as there are processors; each with its place, as it is done."""
    workers = min(len(wanted), os.cpu_count() or 1, MOST_WORKERS)
    if workers < 2:
        yield from ((place, traced(*each)) for place, each in enumerate(wanted))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=hush) as pool:
        places = {pool.submit(traced, *each): place for place, each in enumerate(wanted)}
        for done in as_completed(places):
            yield places[done], done.result()
