"""`plan diff OLD NEW`: what a change of configuration does to memory, time and cost."""

import os
from datetime import date
from typing import Any

import click

from tuneplan.planner.cli.config_words import typed_options
from tuneplan.planner.cli.options import json_option, write_file
from tuneplan.planner.cli.step_words import asked, request_options
from tuneplan.planner.cli.traced import spec_of
from tuneplan.planner.errors import InputError
from tuneplan.planner.report import document

CONFIG_ENDINGS = (".yaml", ".yml", ".json")


@click.command(name="diff")
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@click.option("--max-increase", metavar="LIMIT", help="Exit with 1 where the peak grows by more, such as 5% or 500MiB.")
@click.option("--max-slower", metavar="LIMIT", help="Exit with 1 where a token takes longer by more, such as 10%.")
@click.option("--markdown", metavar="FILE", help="Also write Markdown for a pull request; - prints it instead of the report.")
@request_options
@json_option
def command(old: str, new: str, as_json: bool, **given: Any) -> int:
    """Two training configs side by side: peak memory, time and cost, component by component.

    \b
    OLD and NEW are config files (several with commas: train.yaml,accelerate.yaml) or models;
    options and --config files apply to both sides.

    \b
    Examples:
      plan diff main.yaml branch.yaml --gpu a100-80g --max-increase 5% --markdown diff.md
      plan diff old/adapter_config.json new/adapter_config.json --model 7b
      plan diff 7b 8b --method lora --seq-len 512
    """  # noqa: D301 (click reads the escape)
    from tuneplan.hardware_profiles.loader import Gpu, offers
    from tuneplan.planner.diff import diff, parse_limit

    limits = {"max_increase": True, "max_slower": False}
    memory, time = (given.pop(name) for name in limits)
    page = given.pop("markdown")
    if page is not None and not page.strip():
        raise InputError("--markdown is empty; give a file, or - to print it")
    memory_limit = parse_limit(memory) if memory is not None else None
    time_limit = parse_limit(time, sizes=False) if time is not None else None
    requests = [(name, asked(*_words(name, given)).request(spec_of)) for name in (old, new)]
    cards = {request.gpu.id for _, request in requests if isinstance(request.gpu, Gpu)}
    known = offers(cards.pop()) if len(cards) == 1 else ()
    found = diff(requests[0], requests[1], tuple(known), date.today(), memory_limit, time_limit)
    if page is not None:
        from tuneplan.planner.report.diff_report import markdown

        if page == "-" and not as_json:
            click.echo(markdown(found), nl=False)
            return 1 if found.breaches else 0
        write_file(page, markdown(found))
    if as_json:
        from tuneplan.planner.report.diff_json import diff_json

        click.echo(document.text(diff_json(found)))
    else:
        from tuneplan.planner.report.diff_report import render
        from tuneplan.planner.report.terminal import console

        console().print(render(found))
    return 1 if found.breaches else 0


def _words(name: str, given: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The options of one side, and which of them win over its files. Raises InputError for an empty name."""
    if not name.strip():
        raise InputError("a side of the comparison is empty; name a config file or a model")
    paths = [path.strip() for path in name.split(",")]
    typed = typed_options(given)
    if not all(_is_config(path) for path in paths):
        return {**given, "model": name}, typed | {"model"}
    formats = given["config_formats"]
    if formats and len(formats) == 1:  # one name stands for the files of both sides
        formats = (*formats, *([formats[0]] * (len(given["configs"]) + len(paths) - 1)))
    return {**given, "configs": (*given["configs"], *paths), "config_formats": formats}, typed


def _is_config(path: str) -> bool:
    """Whether a side is a training config: not a folder, and not a model's own config.json."""
    return path.lower().endswith(CONFIG_ENDINGS) and os.path.basename(path) != "config.json" and not os.path.isdir(path)
