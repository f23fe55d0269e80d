"""Real training steps on this machine's GPU, each beside its estimate and its trace: one command, resumable, stops by itself.

    python -m tuneplan.profiling.campaign --out DIR --seconds 540

Weights are random. Each case is one line of DIR/rows.jsonl, written as soon as it is measured; cases that the file has are
skipped, so that the same command goes on where it stopped. Traces run in processes of their own meanwhile. With `--device cpu`
a few tiny models are run instead. `python -m tuneplan.profiling.evidence DIR` makes the accuracy tables of the rows.
"""

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from tuneplan.hardware_profiles.errors import ProfileError
from tuneplan.hardware_profiles.loader import Gpu
from tuneplan.planner.device_memory import usable_bytes
from tuneplan.planner.errors import TuneplanError
from tuneplan.planner.estimate import Estimate, estimate
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.request import Request
from tuneplan.planner.target import targets
from tuneplan.planner.training.optimizers import find as find_optimizer
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling import devices
from tuneplan.profiling.cases import Case, config_of, cpu_cases, gpu_cases, key_of
from tuneplan.profiling.failures import DEVICE_LOST
from tuneplan.profiling.largest_batch import largest
from tuneplan.profiling.measure import measure
from tuneplan.profiling.provenance import provenance
from tuneplan.profiling.quiet import quiet
from tuneplan.profiling.ranks import ALONE
from tuneplan.profiling.subject import Subject
from tuneplan.profiling.trace import trace

Row = Mapping[str, Any]
ROWS = "rows.jsonl"
WARMUP_STEPS, STEPS = 2, 5
TRACERS = 3
ATTEMPTS = 2
"""Rows that a case may lose its device on before it is left alone."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the campaign runs.

    Attributes:
        device: of the measured steps.
        compute_capability: of the card; None on a CPU.
        memory_bytes: of the card; None on a CPU.
        gpu: the planner's card, if it was named.
        tiny: models are made small, and traced in this process.
    """

    device: torch.device
    compute_capability: tuple[int, int] | None = None
    memory_bytes: int | None = None
    gpu: Gpu | None = None
    tiny: bool = False


class OutOfTimeError(Exception):
    """The time of this part is over in the middle of a search."""


def settings_of(case: Case, capability: tuple[int, int] | None) -> Settings:
    """The planner's settings of a case."""
    settings = Settings(
        micro_batch_size=case.micro_batch_size,
        seq_len=case.seq_len,
        dtype=case.dtype,
        precision=case.precision,
        attention=case.attention,
        loss=case.loss,
        gradient_checkpointing=case.gradient_checkpointing,
        accumulating=case.gradient_accumulation_steps > 1,
        padded=case.padded,
    )
    return settings if capability is None else replace(settings, compute_capability=capability)


def subject_of(case: Case, capability: tuple[int, int] | None, tiny: bool) -> Subject:
    """The case as it is traced and measured."""
    return Subject(
        id=case.model,
        config=config_of(case.model, tiny),
        method=parse(case.method),
        settings=settings_of(case, capability),
        optimizer=find_optimizer(case.optimizer),
        gradient_accumulation_steps=case.gradient_accumulation_steps,
    )


def estimate_of(case: Case, machine: Machine) -> Estimate:
    """The case as it is planned. Raises InputError for a model or a method that the planner does not know."""
    request = Request(
        spec=read_spec(case.model, ConfigReader(config_of(case.model, machine.tiny), case.model)),
        method=parse(case.method),
        settings=settings_of(case, machine.compute_capability),
        optimizer=find_optimizer(case.optimizer),
        gradient_accumulation_steps=case.gradient_accumulation_steps,
        gpu=machine.gpu,
    )
    return estimate(request, advice=False)


def figures(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a row keeps of a document of the common schema."""
    names = ("parameters", "peak", "phases", "components", "step_seconds", "tokens_per_second", "failure")
    return {name: document[name] for name in names if name in document}


def refused(error: Exception) -> dict[str, Any]:
    """Why a source has no figures, in one line; a defect with the name of its class."""
    name = "" if isinstance(error, TuneplanError) else f"{type(error).__name__}: "
    return {"refused": name + " ".join(str(error).split())[:300]}


def estimated(case: Case, machine: Machine) -> dict[str, Any]:
    """The planner's figures, or why there are none."""
    try:
        found = estimate_of(case, machine)
    except Exception as error:  # a defect in one case must not end an unattended campaign
        return refused(error)
    return {**figures(found.to_json()), "attention_kernel": found.network.notes.get("attention_kernel", "")}


def traced(case: Case, capability: tuple[int, int] | None, tiny: bool) -> dict[str, Any]:
    """The trace's figures, or why there are none. Runs without a GPU, in a process of its own."""
    quiet()
    try:
        return figures(trace(subject_of(case, capability, tiny), capability).to_json())
    except Exception as error:
        return refused(error)


def measured(case: Case, machine: Machine, steps: int = STEPS) -> dict[str, Any]:
    """The device's figures; a run that broke off says so, a case that cannot run here says why."""
    try:
        seen = measure(subject_of(case, machine.compute_capability, machine.tiny), machine.device, WARMUP_STEPS, steps)
    except Exception as error:
        return refused(error)
    finally:
        gc.collect()
        if machine.device.type == "cuda":
            torch.cuda.empty_cache()
    found = seen.to_json()
    return {**figures(found), "attention": seen.attention, "timing": found["timing"]}


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
        whole, careful = predicted(memory), predicted(usable_bytes(memory))
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


def machine_of(device: str, gpu: str | None) -> Machine:
    """This machine. Raises InputError for a GPU that is not there or not known."""
    chosen = devices.choose(device, ALONE)
    if chosen.type == "cpu":
        return Machine(chosen, tiny=True)
    card = torch.cuda.get_device_properties(chosen)
    known = targets([gpu], None)[0].gpu if gpu else None
    return Machine(chosen, (card.major, card.minor), card.total_memory, known)


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
