"""`plan methods search`: candidates of a space of methods, and those that no other one betters."""

from fractions import Fraction
from typing import Any

import click

from tuneplan.planner.cli.options import json_option
from tuneplan.planner.cli.step_words import asked, request_options
from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.methods.spaces import SPACES, Space, own_space
from tuneplan.planner.report import document
from tuneplan.planner.units import parse_bytes, parse_count

FILE = ".toml"
PLAIN = "lora"
"""The default of --method, which every candidate takes the place of."""


@click.command(name="search")
@click.option(
    "--space",
    default="autopeft",
    show_default=True,
    metavar="NAME|FILE",
    help=f"{', '.join(SPACES)}, or your own space as .toml.",
)
@click.option("--max-trainable", metavar="COUNT|SHARE", help="Budget of trained parameters, such as 10M or 0.5%.")
@click.option("--max-memory", metavar="SIZE", help="Budget of the step's peak, such as 20GiB.")
@request_options
@json_option
def search(space: str, max_trainable: str | None, max_memory: str | None, as_json: bool, **given: Any) -> int:
    """Search a space of parts, sizes and layers: trained parameters, memory and time of each candidate. No quality.

    Prints the candidates that train more than any other with as little memory and time (AutoPEFT, NOAH, S3PET as spaces).

    \b
    Examples:
      plan methods search --model 7b --space autopeft --max-trainable 0.5%
      plan methods search --model 8b --space noah --gpu a100-80g --seq-len 1024 --max-memory 40GiB
      plan methods search --model 7b --space my_space.toml --json
    """  # noqa: D301 (click reads the escape)
    from tuneplan.planner.method_search import search_methods

    if given["peft_config"] is not None or given["method"] != PLAIN:
        raise InputError("plan methods search walks the methods of its space; leave out --method and --peft-config")
    request = asked(given).request()
    most = None if max_trainable is None else _count(max_trainable, request.spec, request.settings)
    found = search_methods(request, _space(space), most, None if max_memory is None else parse_bytes(max_memory))
    if as_json:
        from tuneplan.planner.report.method_search_report import search_json

        click.echo(document.text(search_json(found)))
    else:
        from tuneplan.planner.report.method_search_report import render
        from tuneplan.planner.report.terminal import console

        console().print(render(found))
    return 0 if found.best else 1


def _space(name: str) -> Space:
    if name.lower().endswith(FILE):
        from tuneplan.hardware_profiles.reading import read_toml

        return own_space(read_toml(name), name)
    known = SPACES.get(name.strip().lower())
    if known is None:
        raise UnknownNameError("space", name, list(SPACES), "plan methods search --help; your own is a .toml file")
    return known


def _count(text: str, spec: Any, settings: Any) -> int:
    """A number of parameters; a share is one of the model's."""
    if not text.strip().endswith("%"):
        return parse_count(text)
    from tuneplan.planner.method_search import share_of_model

    try:
        share = Fraction(text.strip()[:-1])
    except ValueError:
        share = Fraction(0)
    if not 0 < share <= 100:
        raise InputError(
            f"max-trainable {text!r} is no share of the model's parameters; use such as 0.5%, or a number such as 10M"
        )
    return share_of_model(share, spec, settings)
