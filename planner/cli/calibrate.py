"""`plan calibrate`: a card's constants from what was measured on it."""

from typing import Any

import click

from tuneplan.planner.cli.options import json_option, write_file
from tuneplan.planner.report import document


@click.command(name="calibrate")
@click.argument("files", metavar="RESULT...", nargs=-1, required=True)
@click.option("--gpu", "gpu_name", required=True, metavar="G", help="The card on which they were measured.")
@click.option("--out", default=None, metavar="FILE", help="Write the calibration (TOML), for --calibration FILE.")
@json_option
def command(files: tuple[str, ...], gpu_name: str, out: str | None, as_json: bool) -> int:
    """Fit a card's constants to measured steps; half of them choose, the others judge.

    \b
    Examples:
      plan profile --model 8b --method lora --seq-len 1024 --out lora.json     (and at least three more)
      plan calibrate lora.json qlora.json full.json long.json --gpu h200 --out h200.toml
      plan estimate --model 8b --method lora --gpu h200 --calibration h200.toml
    """  # noqa: D301 (click reads the escape)
    from tuneplan.hardware_profiles.calibrations import to_toml
    from tuneplan.hardware_profiles.loader import find_gpu
    from tuneplan.planner.calibrate import fit
    from tuneplan.planner.measurements import read_measurements

    found = fit(find_gpu(gpu_name), *read_measurements(list(files)))
    if out is not None:
        write_file(out, to_toml(found.calibration))
    if as_json:
        from tuneplan.planner.report.calibrate_report import fit_json

        click.echo(document.text(fit_json(found)))
    else:
        _print(found)
    return 0


def _print(found: Any) -> None:
    from tuneplan.planner.report.calibrate_report import fit_report
    from tuneplan.planner.report.terminal import console

    console().print(fit_report(found))
