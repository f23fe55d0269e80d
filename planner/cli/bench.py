"""`plan bench`: the kernels beside other implementations, timed on this machine's GPU or CPU."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from tuneplan.planner.cli.options import json_option, read_model
from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.report import document

LONGEST_RUN_SECONDS = 86400.0
MOST_ROUNDS = 1000
MOST_TOKENS = 2**20


@click.command(name="bench")
@click.option("--kernel", "kernels", default=None, metavar="NAMES", help="Kernels, comma-separated; all where it is left out.")
@click.option("--model", default=None, metavar="M", help="Shapes of this model's layers: an alias, hub id or config.json.")
@click.option("--shapes", default=None, metavar="OUTxIN,...", help="Shapes of weights, such as 11008x4096.")
@click.option("--tokens", default=None, metavar="N,...", help="Rows of activations, for kernels that take any.")
@click.option("--implementations", default=None, metavar="NAMES", help="Only these, such as tuneplan,bitsandbytes.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cuda|cpu", help="What the kernels run on.")
@click.option("--seconds", type=float, default=120.0, show_default=True, help="Begin no case that may end after this time.")
@click.option("--rounds", type=int, default=None, metavar="N", help="Interleaved rounds of each case (7).")
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Append rows to this file (JSON lines); cases in it are skipped."
)
@click.option("--list", "only_list", is_flag=True, help="Show cases and implementations, and why one cannot run; time nothing.")
@json_option
def command(as_json: bool, only_list: bool, device: str, **given: Any) -> int:
    """Kernels beside other implementations: device and call time, share of what the device can do, memory.

    Each result is checked before it is timed. A ratio within the noise of an implementation against itself is no difference.

    \b
    Examples:
      plan bench --list
      plan bench --kernel dequantize_4bit --model 7b --seconds 60
      plan bench --kernel linear_4bit --shapes 4096x4096 --tokens 1,4 --device cpu --json
    """  # noqa: D301 (click reads the escape)
    from tuneplan.planner.cli.extras import kernels_need
    from tuneplan.planner.report.bench_report import bench_report, listing_report

    with kernels_need("plan bench"):
        from tuneplan.kernels.bench import ceilings, machine, session
        from tuneplan.kernels.bench.catalog import listing
        from tuneplan.kernels.bench.document import document as body
        from tuneplan.kernels.bench.document import is_wrong
        from tuneplan.kernels.bench.rounds import ROUNDS
        from tuneplan.kernels.bench.rows import append, read_rows
        from tuneplan.kernels.errors import KernelInputError
    _check(given)
    try:
        here = machine.machine_of(device)
        cases = _cases(here, given)
    except KernelInputError as error:
        raise InputError(str(error)) from None
    names = _names(given["implementations"], cases)
    if only_list:
        found = listing(here, cases)
        _show(listing_report(found), {"kernels": found}, as_json)
        return 0
    out: Path | None = given["out"]
    if out is not None:
        _check_writable(out)
    budget = session.Budget(given["seconds"])
    done = read_rows(out) if out is not None and out.exists() else []
    best = ceilings.measure(here, curve=False)
    if out is not None:
        append(out, [ceilings.ceilings_row(here, best)])
    rounds = given["rounds"] or ROUNDS
    ran = session.run_cases(cases, here, best, budget, names=names, rounds=rounds, done=done, file=out, told=_told)
    result = body(here, best, ran, given["seconds"])
    _show(bench_report(result), result, as_json)
    return int(is_wrong(ran.rows))


def _told(case: Any, rows: Sequence[Any]) -> None:
    """Progress, beside the report."""
    sys.stderr.write(f"{case.label}: {', '.join(dict.fromkeys(str(row['state']) for row in rows))}\n")


def _show(report: Any, found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(document.text(found))
        return
    from tuneplan.planner.report.terminal import console

    console().print(report)


def _check(given: dict[str, Any]) -> None:
    """Raise InputError for options that no session can have."""
    if not 0 < given["seconds"] <= LONGEST_RUN_SECONDS:
        raise InputError(f"--seconds {given['seconds']} is not a time to measure in; use up to {LONGEST_RUN_SECONDS:.0f}")
    if given["rounds"] is not None and not 2 <= given["rounds"] <= MOST_ROUNDS:
        raise InputError(f"--rounds {given['rounds']} is not a number of rounds; use 2 to {MOST_ROUNDS}")
    if given["model"] and given["shapes"]:
        raise InputError("--model and --shapes both name shapes; give one of them")


def _check_writable(out: Path) -> None:
    """Raise InputError where rows cannot be appended."""
    try:
        with out.open("a", encoding="utf-8"):
            return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise InputError(f"{str(out)!r} cannot be written: {reason}; choose another file") from None


def _cases(here: Any, given: dict[str, Any]) -> list[Any]:
    """The cases that are asked for. Raises InputError and KernelInputError."""
    from tuneplan.kernels.bench.cases import cases_of
    from tuneplan.kernels.bench.catalog import default_cases
    from tuneplan.kernels.bench.registry import KERNELS
    from tuneplan.kernels.bench.shapes import Shape

    wanted = _words(given["kernels"]) or list(KERNELS)
    for name in wanted:
        if name not in KERNELS:
            raise UnknownNameError("kernel", name, KERNELS, "plan bench --list")
    tokens = [_tokens(word) for word in _words(given["tokens"])]
    shapes = [Shape.read(word) for word in _words(given["shapes"])]
    if given["model"]:
        from tuneplan.planner.models.linears import linears

        found = {Shape(one.out_features, one.in_features) for one in linears(read_model(given["model"]))}
        shapes = sorted(found, key=lambda shape: (shape.weights, shape))
        if not shapes:
            raise InputError(f"{given['model']} has no linear layers of its own that could be timed; use --shapes")
    defaults = [case for case in default_cases(here) if case.kernel in wanted]
    if not shapes and not tokens:
        return defaults
    chosen = shapes or list(dict.fromkeys(case.shape for case in defaults))
    return list(dict.fromkeys(case for name in wanted for case in cases_of(name, chosen, tokens)))


def _names(text: str | None, cases: Sequence[Any]) -> list[str] | None:
    """Implementations that are wanted. Raises UnknownNameError."""
    from tuneplan.kernels.bench.registry import KERNELS

    known = dict.fromkeys(name for case in cases for name in KERNELS[case.kernel].implementations)
    wanted = _words(text)
    for name in wanted:
        if name not in known:
            raise UnknownNameError("implementation", name, known, "plan bench --list")
    return wanted or None


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _tokens(word: str) -> int:
    if not (word.isascii() and word.isdigit() and 1 <= int(word[:12]) <= MOST_TOKENS):
        raise InputError(f"--tokens {word!r:.40} is not a number of tokens; use 1 to {MOST_TOKENS}")
    return int(word)
