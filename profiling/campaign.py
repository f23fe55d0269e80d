"""Real training steps on this machine's GPU, each beside its estimate and its trace: one command, resumable, stops by itself.

    python -m tuneplan.profiling.campaign --out DIR --seconds 540

Weights are random. Each case is one line of DIR/rows.jsonl, written as soon as it is measured; cases that the file has are
skipped, so that the same command goes on where it stopped. Traces run in processes of their own meanwhile. With `--device cpu`
a few tiny models are run instead. `python -m tuneplan.profiling.evidence DIR` makes the accuracy tables of the rows.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tuneplan.hardware_profiles.errors import ProfileError
from tuneplan.planner.device_memory import usable_bytes
from tuneplan.planner.errors import TuneplanError
from tuneplan.planner.uncertainty import margin
from tuneplan.profiling.cases import Case, cpu_cases, gpu_cases, key_of
from tuneplan.profiling.failures import DEVICE_LOST
from tuneplan.profiling.largest_batch import largest
from tuneplan.profiling.provenance import provenance
from tuneplan.profiling.quiet import quiet
from tuneplan.profiling.three_sources import Machine, estimate_of, estimated, machine_of, measured, refused, traced

Row = Mapping[str, Any]
ROWS = "rows.jsonl"
TRACERS = 3
ATTEMPTS = 2
"""Rows that a case may lose its device on before it is left alone."""


class OutOfTimeError(Exception):
    """The time of this part is over in the middle of a search."""


def largest_batch(case: Case, machine: Machine, deadline: float) -> dict[str, Any]:
    """The largest micro-batch that really fits, against the largest that is predicted to.

    Raises:
        OutOfTimeError: the part's time is over; nothing is kept of the search.
    """
    memory = machine.memory_bytes or 0

    def predicted(limit: int) -> int:
        return largest(lambda batch: estimate_of(replace(case, micro_batch_size=batch), machine).device_bytes <= limit)

    trials: list[dict[str, Any]] = []

    def fits(batch: int) -> bool:
        if time.monotonic() > deadline:
            raise OutOfTimeError
        seen = measured(replace(case, micro_batch_size=batch), machine, steps=1)
        peak, failure = seen.get("peak"), seen.get("failure")
        trials.append({"micro_batch_size": batch, "peak": peak, "failure": failure or seen.get("refused")})
        return peak is not None and failure is None

    try:
        whole, careful = predicted(memory), predicted(usable_bytes(memory, margin()))
    except Exception as error:
        return refused(error)
    found = largest(fits, start=max(whole, 1))
    return {"predicted": whole, "predicted_with_margin": careful, "measured": found, "trials": trials}


def row_of(case: Case, machine: Machine, deadline: float, tracers: Executor | None) -> dict[str, Any]:
    """A line of the result: the case, its three sources side by side, and where they come from."""
    row: dict[str, Any] = {"case": asdict(case), "provenance": provenance(machine.device)}
    if not case.micro_batch_size:
        return {**row, "largest_batch": largest_batch(case, machine, deadline)}
    waiting: Future[dict[str, Any]] | None = None
    if tracers is not None:
        waiting = tracers.submit(traced, case, machine.compute_capability, machine.tiny)
    row |= {"estimated": estimated(case, machine), "measured": measured(case, machine)}
    row["traced"] = waiting.result() if waiting else traced(case, machine.compute_capability, machine.tiny)
    return row


def read_rows(folder: Path) -> list[Row]:
    """The rows of a campaign; a line that was cut off by a kill is passed over."""
    file = folder / ROWS
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    rows: list[Row] = []
    for line in lines:
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def is_done(case: Case, rows: Sequence[Row]) -> bool:
    """Whether a case needs no further run: it has a row, unless the device was lost on it only once."""
    own = [row for row in rows if key_of(row["case"]) == case.key]
    lost = [row for row in own if lost_device(row)]
    return len(own) > len(lost) or len(lost) >= ATTEMPTS


def lost_device(row: Row) -> bool:
    """Whether the device stopped answering in a row."""
    failure = row.get("measured", {}).get("failure")
    return bool(failure) and failure["kind"] == DEVICE_LOST


@contextmanager
def tracing(machine: Machine) -> Iterator[Executor | None]:
    """Processes for traces, which see no GPU; none for tiny models."""
    if machine.tiny:
        yield None
        return
    with ProcessPoolExecutor(TRACERS, mp_context=get_context("spawn"), initializer=hide_devices) as pool:
        yield pool


def hide_devices() -> None:
    """A tracing process makes no CUDA context, which would take memory of the card."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def run(folder: Path, seconds: float, machine: Machine) -> int:
    """Run what is missing until the time is over; 1 where the device was lost."""
    start = time.monotonic()
    longest = 0.0
    wanted = list(cpu_cases() if machine.tiny else gpu_cases())
    rows = read_rows(folder)
    with tracing(machine) as tracers:
        for case in wanted:
            if is_done(case, rows):
                continue
            begun = time.monotonic()
            if begun - start + longest > seconds:
                break
            try:
                row = row_of(case, machine, start + seconds, tracers)
            except OutOfTimeError:
                break
            longest = max(longest, time.monotonic() - begun)
            rows.append(row)
            with (folder / ROWS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(summary(case, row), flush=True)
            if lost_device(row):
                print("the device stopped answering; run the same command again", file=sys.stderr)
                return 1
    left = sum(not is_done(case, rows) for case in wanted)
    print(f"{len(wanted) - left} of {len(wanted)} cases done" + ("; run the same command again" if left else ""))
    return 0


def summary(case: Case, row: Row) -> str:
    """One line about a row."""
    if "largest_batch" in row:
        found = row["largest_batch"]
        return f"{case.label}: {found.get('refused') or 'measured {measured}, predicted {predicted}'.format(**found)}"
    seen = row["measured"]
    if "refused" in seen or seen["failure"]:
        return f"{case.label}: {seen.get('refused') or seen['failure']['kind'].replace('_', ' ')}"
    real = seen["peak"]["allocated_bytes"]
    gaps = [
        f"{source} {100 * (row[source]['peak']['allocated_bytes'] / real - 1):+.2f} %"
        for source in ("estimated", "traced")
        if "peak" in row[source]
    ]
    return f"{case.label}: {', '.join(gaps) or 'measured only'}"


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description="Real training steps beside their estimates and traces.")
    parser.add_argument("--out", type=Path, required=True, help="folder for rows.jsonl; cases in it are skipped")
    parser.add_argument("--seconds", type=float, default=540.0, help="begin no case that may end after this time")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--gpu", default=None, help="the card by the planner's name, such as h200: estimates then have a time")
    given = parser.parse_args(arguments)
    quiet()
    try:
        given.out.mkdir(parents=True, exist_ok=True)
        return run(given.out, given.seconds, machine_of(given.device, given.gpu))
    except (TuneplanError, ProfileError, OSError) as error:
        print(f"campaign: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
