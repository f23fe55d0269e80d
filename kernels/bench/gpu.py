"""Everything that a GPU has to say about the kernels: one command, resumable, stops by itself.

    PYTHONPATH=src python -m tuneplan.kernels.bench.gpu --out DIR --seconds 540

Ceilings; what must hold on a GPU; the cases that the goals are about; a real QLoRA step of a 7B model; the constants of the
4-bit program; every other case; other programs' constants; last, in a process of its own, Unsloth where it is installed, since
importing it changes other libraries. Each row is a line of DIR/rows.jsonl, written as soon as it is there; what the file has is
not run again. A library that is missing costs its rows alone. With `--device cpu` the same runs with tiny shapes, as far as a
CPU goes.
"""

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tuneplan.kernels.bench import ceilings as limits
from tuneplan.kernels.bench.cases import FIRST_CASES, Case, gpu_cases
from tuneplan.kernels.bench.catalog import default_cases
from tuneplan.kernels.bench.checks import CHECKS, run_check
from tuneplan.kernels.bench.machine import Machine, machine_of
from tuneplan.kernels.bench.registry import KERNELS
from tuneplan.kernels.bench.rows import FAILED, MEASURED, NOT_RUN, ROWS, Row, append, newest, read_rows, row, settled
from tuneplan.kernels.bench.session import Budget, run_cases
from tuneplan.kernels.errors import KernelInputError

UNSLOTH = "unsloth"
COMPILED = "torch_compile"
_EXPECTED = {"check": 30.0, "sweep": 90.0, "step": 90.0, UNSLOTH: 60.0}
"""Seconds that the first of a kind may take."""


class DeviceLostError(Exception):
    """The GPU does not answer any more; nothing that follows in this process can be trusted."""


class Campaign:
    """One run of the command."""

    def __init__(self, folder: Path, machine: Machine, seconds: float) -> None:
        self.file = folder / ROWS
        self.machine = machine
        self.budget = Budget(seconds)
        self.rows = read_rows(self.file)
        self.left: list[str] = []

    def done(self, kind: str, key: str) -> bool:
        """Whether a row is there that need not be tried again."""
        cannot = any(one["kind"] == kind and one["key"] == key and one["state"] == NOT_RUN for one in self.rows)
        return cannot or settled(self.rows, kind, key)

    def add(self, rows: Sequence[Row]) -> None:
        """Write rows, and say so in a line each."""
        append(self.file, rows)
        self.keep(rows)

    def keep(self, rows: Sequence[Row]) -> None:
        """Rows that are written already. Raises DeviceLostError where the device does not answer."""
        self.rows += rows
        for one in rows:
            print(summary(one), flush=True)
        if any(one.get("state") == FAILED for one in rows) and not alive(self.machine):
            raise DeviceLostError

    def unit(self, kind: str, keys: Sequence[str], run: Callable[[], list[Row]], **body: Any) -> None:
        """Run what has no rows yet, if the time allows it; whatever it raises becomes its rows."""
        missing = [key for key in keys if not self.done(kind, key)]
        if not missing:
            return
        if not self.budget.allows(kind, _EXPECTED.get(kind, 0.0) if self.machine.on_gpu else 0.0):
            self.left += missing
            return
        try:
            rows = self.budget.spend(kind, run)
        except Exception as error:  # a library that is missing or broken, or memory that is too small
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            rows = [row(kind, key, self.machine.provenance, state=FAILED, reason=reason, **body) for key in missing]
        self.add(rows)


def run(campaign: Campaign) -> None:
    """All of it, in the order in which it matters. Raises DeviceLostError."""
    machine = campaign.machine
    best = limits.measure(machine)
    campaign.add([limits.ceilings_row(machine, best)])
    for name in CHECKS:
        campaign.unit("check", [name], partial(run_check, name, machine))
    cases = default_cases(machine)
    here = [name for name in names() if not (name == UNSLOTH and machine.on_gpu and installed(UNSLOTH))]
    _cases(campaign, best, cases[:FIRST_CASES], here if machine.on_gpu else [name for name in here if name != COMPILED])
    _steps(campaign)
    if machine.on_gpu:
        _sweeps(campaign, best, first=True)
    _cases(campaign, best, cases, [name for name in here if name != COMPILED])
    if machine.on_gpu:
        _sweeps(campaign, best, first=False)
    if machine.on_gpu and installed(UNSLOTH):
        _unsloth(campaign)


def names() -> list[str]:
    """Every implementation of any kernel."""
    return list(dict.fromkeys(name for kernel in KERNELS.values() for name in kernel.implementations))


def installed(name: str) -> bool:
    """Whether a package can be found."""
    return importlib.util.find_spec(name) is not None


def _cases(campaign: Campaign, best: limits.Ceilings, cases: Sequence[Case], wanted: Sequence[str]) -> None:
    session = run_cases(
        cases,
        campaign.machine,
        best,
        campaign.budget,
        names=wanted,
        done=campaign.rows,
        file=campaign.file,
        told=lambda case, rows: campaign.keep(rows),
    )
    campaign.left += [case.label for case in session.left]


def _steps(campaign: Campaign) -> None:
    """The model is built once, for the first step that has no row."""
    from tuneplan.kernels.bench import train_step

    built: list[Any] = []

    def one(step: train_step.Step) -> list[Row]:
        if not built:
            built.append(train_step.build(campaign.machine))
        return train_step.run_step(built[0], step, campaign.machine)

    for step in train_step.steps(campaign.machine):
        keys = [train_step.key_of(step, name) for name in (train_step.OWN, train_step.PLAIN)]
        campaign.unit("step", keys, partial(one, step))


def _sweeps(campaign: Campaign, best: limits.Ceilings, first: bool) -> None:
    """The first sweep, or the others."""
    from tuneplan.kernels.bench import sweep

    for one in sweep.SWEEPS[:1] if first else sweep.SWEEPS[1:]:
        for case in one.cases:
            keys = [sweep.key_of(case, choice) for choice in ({}, *sweep.combinations(one.choices))]
            run_one = partial(sweep.run_sweep, one, case, campaign.machine, best)
            campaign.unit("sweep", keys, run_one, case=case.as_json())


def _unsloth(campaign: Campaign) -> None:
    """The same cases with our kernels and Unsloth's alone, in another process, which appends to the same file."""
    wanted = [case.label for case in unsloth_cases() if not settled(campaign.rows, "bench", f"{case.label} / {UNSLOTH}")]
    if not wanted:
        return
    if not campaign.budget.allows(UNSLOTH, _EXPECTED[UNSLOTH]):
        campaign.left += wanted
        return
    command = [sys.executable, "-m", "tuneplan.kernels.bench.gpu", "--out", str(campaign.file.parent), "--unsloth"]
    try:
        subprocess.run([*command, "--seconds", f"{campaign.budget.left:.0f}"], check=False, timeout=campaign.budget.left + 30)
    except subprocess.TimeoutExpired:
        print("the process with unsloth was stopped: it took too long", file=sys.stderr)


def unsloth_cases() -> list[Case]:
    """Cases that Unsloth has an implementation of."""
    return [case for case in gpu_cases() if UNSLOTH in KERNELS[case.kernel].implementations]


def run_unsloth(campaign: Campaign) -> None:
    """What the process with Unsloth does."""
    best = limits.measure(campaign.machine, curve=False)
    _cases(campaign, best, unsloth_cases(), ["tuneplan", UNSLOTH])


def alive(machine: Machine) -> bool:
    """Whether the device still computes."""
    try:
        return float(torch.ones(2, device=machine.device).sum()) == 2.0
    except RuntimeError:
        return False


def summary(one: Row) -> str:
    """One line about a row."""
    head = f"{one['kind']}: {one['key']}: "
    if one["kind"] == "ceilings":
        best = one["ceilings"]
        return (
            head
            + f"copy {best['copy_bytes_per_second'] / 1e9:.1f} GB/s, bf16 {best['product_flops_per_second'] / 1e12:.2f} TFLOP/s"
        )
    if one["state"] != MEASURED or one["kind"] == "check":
        state = "holds" if one["state"] == MEASURED else one["state"]
        return head + state + (f" ({one['reason']})" if one["reason"] else "")
    seconds = one.get("step_seconds") or one.get("device_seconds") or one["call_seconds"]
    share = one.get("share_of_roofline")
    return head + f"{seconds['median'] * 1e6:.1f} us" + (f", {share:.0%} of the roofline" if share else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run: 0 done or out of time, 1 wrong results or a lost device, 2 wrong input."""
    parser = argparse.ArgumentParser(description="Kernels on a GPU: checks, ceilings, cases, a training step, a sweep.")
    parser.add_argument("--out", type=Path, required=True, help="folder for rows.jsonl; what it has is not run again")
    parser.add_argument("--seconds", type=float, default=540.0, help="begin nothing that may end after this time")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument(
        "--unsloth", action="store_true", help="only the cases with Unsloth, whose import changes other libraries"
    )
    given = parser.parse_args(arguments)
    try:
        given.out.mkdir(parents=True, exist_ok=True)
        campaign = Campaign(given.out, machine_of(given.device), given.seconds)
        (run_unsloth if given.unsloth else run)(campaign)
    except (KernelInputError, OSError) as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 2
    except DeviceLostError:
        print("the device stopped answering; run the same command again", file=sys.stderr)
        return 1
    if campaign.left:
        print(f"{len(set(campaign.left))} left; run the same command again")
    else:
        print("all done")
    return int(
        any(one.get("state") == "wrong" and one.get("implementation", "tuneplan") == "tuneplan" for one in newest(campaign.rows))
    )


if __name__ == "__main__":
    sys.exit(main())
