"""`--config FILE`: what configuration files say takes the place of the command line's defaults; what is typed wins over both."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tuneplan.planner.errors import InputError

if TYPE_CHECKING:
    from tuneplan.planner.configs.training_config import ConfigUse

OF_DATA = ("packing", "packing_strategy")
"""Options that say something where lengths of data are given."""
ELSEWHERE = {"reentrant", "gradient_accumulation_steps", "data_parallel", "empty_cache_steps", "engine", "reduce_bucket_size"}
"""Options of `plan estimate` that `plan` has no word for, because it searches them or they do not change its answer."""


def with_configs(given: Mapping[str, Any], typed: Collection[str] | None = None) -> "tuple[dict[str, Any], ConfigUse | None]":
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
    from tuneplan.planner.configs.training_config import ConfigUse

    chosen = set(typed_options(given) if typed is None else typed)
    config = read_configs(paths, formats or (), words.get("model"), chosen)
    overridden: dict[str, object] = {}
    if "training" in chosen:
        chosen |= {"reference", "completion_length", "num_generations"}
    found = {**config.options, "model": config.model, "method": config.method}
    if not (words.get("dataset") or words.get("lengths")):
        found = {name: value for name, value in found.items() if name not in OF_DATA}
    for name, value in found.items():
        if name not in words or value is None:
            continue
        if name == "method" and "peft_config" in chosen:
            overridden["peft_config"] = getattr(value, "name", value)
        elif name in chosen:
            overridden[name] = getattr(value, "name", value)
        elif not (name == "reentrant" and chosen & {"gradient_checkpointing"}):
            words[name] = value
    missing = sorted({n for n in found if n not in words} - ELSEWHERE)
    if missing:
        told = [
            f"{config.sources.get(n, n)}: {n.replace('_', ' ')} is not modelled here; figures are without it" for n in missing
        ]
        config = replace(config, warnings=(*config.warnings, *told))
    for name in ("rank", "target_modules"):
        if name in chosen and config.method is not None and "method" not in overridden:
            overridden[name] = config.method.name
    return words, ConfigUse(config, overridden)


def typed_options(given: Mapping[str, Any]) -> set[str]:
    """Options that the user typed for the present command, or that the command itself has set since; empty outside of one."""
    context = click.get_current_context(silent=True)
    if context is None:
        return set()
    parsed = context.params
    typed = {name for name in parsed if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    return typed | {name for name in given if name in parsed and given[name] != parsed[name]}


def for_search(given: Mapping[str, Any]) -> "tuple[dict[str, Any], ConfigUse | None]":
    """As `with_configs`, for `plan`: the files' batch is the global batch, their number of GPUs the only one.

    How much is trained is taken from them too: updates, or passes over `--samples`.
    """
    words, use = with_configs(given)
    if use is None:
        return words, None
    chosen = typed_options(given)
    options, amount = use.config.options, use.config.amount
    ranks = options.get("data_parallel", 1)
    if "micro_batch_size" in options and "global_batch_size" not in chosen:
        words["global_batch_size"] = words["micro_batch_size"] * options.get("gradient_accumulation_steps", 1) * ranks
    if "data_parallel" in options and "gpus" not in chosen:
        words["gpus"] = str(ranks)
    if "max_steps" in amount and not chosen & {"tokens", "samples", "epochs"}:
        words["tokens"] = str(int(amount["max_steps"]) * words["global_batch_size"] * words["seq_len"])
    elif "epochs" in amount and words["samples"] is not None and "epochs" not in chosen:
        words["epochs"] = amount["epochs"]
    return words, use


def say_warnings(use: "ConfigUse | None") -> None:
    """Say on stderr what files ask for that is not modelled; for commands whose report has no place for it."""
    for warning in use.config.warnings if use else ():
        click.echo(f"note: {warning}", err=True)
