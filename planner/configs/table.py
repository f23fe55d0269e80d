"""The keys of a tool, each with what it means for memory, time and cost."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tuneplan.planner.errors import DataFileError

KEYS = Path(__file__).with_name("keys")
OFF: tuple[object, ...] = (None, False, 0, 0.0, "", "no", "none", "auto", "None", "off", "false", "False")
"""Values with which a key that is not modelled asks for nothing."""


@dataclass(frozen=True, slots=True)
class Table:
    """What each key of one kind of section is.

    Attributes:
        used: key -> what it sets.
        irrelevant: reason -> keys without effect on memory, time and cost.
        not_modelled: what is missing -> keys; at their default (or OFF) they ask for nothing.
        renamed: key of an earlier version of the tool -> its present name.
        defaults: the tool's defaults, where it has them.
    """

    used: Mapping[str, str]
    irrelevant: Mapping[str, Iterable[str]] = field(default_factory=dict)
    not_modelled: Mapping[str, Iterable[str]] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def names(self) -> set[str]:
        """Every key."""
        grouped = [*self.irrelevant.values(), *self.not_modelled.values()]
        return {*self.used, *self.renamed, *(key for keys in grouped for key in keys)}

    def reason(self, groups: str, key: str) -> str | None:
        """The reason under which `groups` ("irrelevant" or "not_modelled") has a key, or None."""
        found: Mapping[str, Iterable[str]] = getattr(self, groups)
        return next((reason for reason, keys in found.items() if key in keys), None)


def joined(*groups: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """Groups of keys under their reasons; keys of a reason that several have are put together."""
    result: dict[str, tuple[str, ...]] = {}
    for group in groups:
        for reason, keys in group.items():
            result[reason] = (*result.get(reason, ()), *keys)
    return result


def words(text: str) -> tuple[str, ...]:
    """Keys written as one text."""
    return tuple(text.split())


@cache
def known_keys(tool: str) -> dict[str, Any]:
    """The keys that a tool's own source has, by class, as docs/config_keys.py wrote them: name -> [type, default].

    Raises:
        DataFileError: the bundled file is broken.
    """
    try:
        content: dict[str, Any] = json.loads((KEYS / f"{tool}.json").read_bytes())
    except (OSError, ValueError) as error:
        raise DataFileError(f"The key list of {tool} is broken: {error!r}. Reinstall tuneplan.") from error
    return content


def version(tool: str) -> str:
    """The version of the tool that the keys and defaults are from."""
    return str(known_keys(tool)["version"])


def defaults(tool: str, group: str) -> dict[str, Any]:
    """Defaults of a class; those that are no literal are texts."""
    return {key: default for key, (_, default) in known_keys(tool)[group].items()}
