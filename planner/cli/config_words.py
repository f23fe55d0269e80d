"""`--config FILE`: what configuration files say takes the place of the command line's defaults; what is typed wins over both."""

from collections.abc import Collection, Mapping
from typing import Any

import click
from click.core import ParameterSource

from tuneplan.planner.configs.training_config import ConfigUse
from tuneplan.planner.errors import InputError


def with_configs(given: Mapping[str, Any], typed: Collection[str] | None = None) -> tuple[dict[str, Any], ConfigUse | None]:
    """The words of a command line with those of its files, and what was read; None without files.

    The method is a `Method` where the files have one and the command line does not name another.

    Args:
        given: values of all options.
        typed: options that win over the files; None for those that were typed for the present command.

    Raises:
        InputError: a file cannot be used; `--config-format` without `--config`.
    """
    words = dict(given)
    paths, formats = words.pop("configs", ()), words.pop("config_formats", ())
    if not paths:
        if formats:
            raise InputError(f"--config-format {formats[0]} says whose config it is, and no --config is given; add --config FILE")
        return words, None
    from tuneplan.planner.configs.read import read_configs

    chosen = set(typed_options(given) if typed is None else typed)
    config = read_configs(paths, formats or (), words.get("model"))
    overridden: dict[str, object] = {}
    found = {**config.options, "model": config.model, "method": config.method}
    for name, value in found.items():
        if name not in words or value is None:
            continue
        if name == "method" and "peft_config" in chosen:
            overridden["peft_config"] = getattr(value, "name", value)
        elif name in chosen:
            overridden[name] = getattr(value, "name", value)
        elif not (name == "reentrant" and chosen & {"gradient_checkpointing"}):
            words[name] = value
    return words, ConfigUse(config, overridden)


def typed_options(given: Mapping[str, Any]) -> set[str]:
    """Options that the user typed for the present command, or that the command itself has set since; empty outside of one."""
    context = click.get_current_context(silent=True)
    if context is None:
        return set()
    parsed = context.params
    typed = {name for name in parsed if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    return typed | {name for name in given if name in parsed and given[name] != parsed[name]}
