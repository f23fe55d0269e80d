"""Options of `plan` about money and the hours beside training: offers, clouds, one's own machine, interruptions."""

from dataclasses import replace
from datetime import date
from typing import Any

import click

from tuneplan.hardware_profiles.loader import find_gpu
from tuneplan.planner.cli.options import stack
from tuneplan.planner.cost import within
from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.job import PURCHASES
from tuneplan.planner.target import NODE_COUNTS, Target
from tuneplan.planner.units import parse_bytes, parse_count, parse_seconds
from tuneplan.planner.wall_clock import DISK_BYTES_PER_SECOND, HOURS_BETWEEN_INTERRUPTIONS, Overheads

money_options = stack(
    click.option("--spot", is_flag=True, help="Spot prices, with what interruptions cost; short for --purchase spot."),
    click.option("--purchase", default=None, metavar="|".join(PURCHASES), help="Kind of price.  [default: on_demand]"),
    click.option("--cloud", default=None, metavar="NAMES", help="Only these providers, comma-separated, such as aws,gcp."),
    click.option("--region", default=None, metavar="NAMES", help="Only these regions, comma-separated."),
    click.option("--owned", default=None, metavar="FILE", help="A machine of your own (YAML): purchase, power, use."),
    click.option("--startup", default=None, metavar="TIME", help="Machine, software, weights before a run, such as 10min."),
    click.option("--eval-tokens", default=None, metavar="N", help="Tokens of one evaluation, a forward each."),
    click.option("--evaluations", type=int, default=1, show_default=True, help="With --eval-tokens: how many."),
    click.option("--save-steps", type=int, default=0, help="Updates between two checkpoints.  [default: one at the end]"),
    click.option("--disk", default=None, metavar="SIZE/s", help="Rate of the disk.  [default: 1GB/s, assumed]"),
    click.option(
        "--interruption-hours",
        type=float,
        default=0.0,
        help=f"Mean hours between two interruptions of a spot machine.  [default: {HOURS_BETWEEN_INTERRUPTIONS:g}, assumed]",
    ),
)


def read_purchase(given: dict[str, Any]) -> str:
    """The kind of price. Raises InputError where two are asked for."""
    named = given["purchase"]
    if named is not None and named not in PURCHASES:
        raise UnknownNameError("purchase", named, PURCHASES, "plan --help")
    if given["spot"] and named not in (None, "spot"):
        raise InputError(f"--spot and --purchase {named} contradict each other; give one of them")
    return "spot" if given["spot"] else named or "on_demand"


def read_overheads(given: dict[str, Any]) -> Overheads:
    """What a run does beside training. Raises InputError."""
    disk = given["disk"]
    if disk is not None and not disk.lower().endswith("/s"):
        raise InputError(f"--disk {disk!r} is not a rate; write such as 500MB/s")
    return Overheads(
        startup_seconds=0.0 if given["startup"] is None else parse_seconds(given["startup"]),
        evaluation_tokens=0 if given["eval_tokens"] is None else parse_count(given["eval_tokens"]),
        evaluations=given["evaluations"],
        save_steps=given["save_steps"],
        disk_bytes_per_second=DISK_BYTES_PER_SECOND if disk is None else parse_bytes(disk[:-2]),
        interruption_hours=given["interruption_hours"],
    )


def owned_target(path: str, counts: tuple[int, ...] | None) -> Target:
    """The machine of `--owned`. Raises InputError and the loader's errors."""
    from tuneplan.planner.owned import read_owned

    found = read_owned(path, date.today())
    gpu, most = find_gpu(found.machine.gpu.id), found.machine.gpu_count
    if counts is not None and max(counts) > most:
        raise InputError(f"{found.machine.label} has {most} GPUs, not {max(counts)}; ask for at most that many")
    usable = counts or tuple(sorted({n for n in NODE_COUNTS if n < most} | {most}))
    return Target(found.machine.label, gpu, gpu.memory_bytes, usable, found.offer.instance, (found.offer,))


def narrowed(target: Target, given: dict[str, Any]) -> Target:
    """The target with offers of the clouds and regions asked for. Raises UnknownNameError."""
    clouds, regions = (
        [name.strip() for name in (given[option] or "").split(",") if name.strip()] for option in ("cloud", "region")
    )
    if not clouds and not regions:
        return target
    return replace(target, offers=within(target.offers, clouds, regions))
