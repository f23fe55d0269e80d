"""A model's name in a training file: a path, a hub id of the catalog, or a mirror of one under the same name."""

import os
import re

from tuneplan.planner.configs.facts import Facts
from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.lookup import load
from tuneplan.planner.secrets import HIDDEN, looks_secret

_COPIES = re.compile(r"(?:-unsloth)?(?:-bnb)?-4bit$|-unsloth$|-hf$", re.IGNORECASE)
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def load_named(name: str, facts: Facts, source: str) -> tuple[str, ConfigReader]:
    """The name that the catalog has for a model, or the path, and its config.

    Args:
        name: as the file gives it.
        facts: where a name that is taken for another is said.
        source: file, line and key.

    Raises:
        InputError: the model is not known here; says how to give its config.json.
    """
    if looks_secret(name):
        raise InputError(f"{source}: the model is {HIDDEN}, which looks like a token. Write a hub id, or give --model.")
    try:
        return load(name)[0], load(name)[1]
    except UnknownNameError as error:
        for copy in _candidates(name):
            try:
                found, config = load(copy)
            except InputError:
                continue
            facts.warn(f"{source}: {name} is taken for {found}, which has the same name")
            return found, config
        close = f" Did you mean {' or '.join(error.close)}?" if error.close else ""
        raise InputError(
            f"{source}: the model {name[:80]!r} is not in the catalog, and nothing is downloaded.{close} "
            "Download its config.json and give its path with --model (plan models lists what is known)"
        ) from None
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _candidates(name: str) -> list[str]:
    """Other names for a hub id: its last part, and that without the marks of a quantized copy."""
    last = name.rstrip("/").rpartition("/")[2]
    if os.sep in name and name.startswith((".", "/", "~")):
        return []
    short = _COPIES.sub("", last)
    return [n for n in dict.fromkeys((last, short, f"{short}-hf", last.removeprefix("Meta-"), short.removeprefix("Meta-"))) if n]


def stored_dtype(config: ConfigReader) -> str | None:
    """The dtype of a model's checkpoint as its config says it, or None."""
    given = config.mapping.get("dtype", config.mapping.get("torch_dtype"))
    return DTYPES.get(given.removeprefix("torch.")) if isinstance(given, str) else None
