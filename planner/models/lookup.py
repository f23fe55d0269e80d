"""Finding a model: an alias, a hub id of the bundled catalog, or a path to a downloaded config.json.

The catalog is the folder `catalog/`: one config.json a model, restricted to the keys that decide shapes, and
`index.json`, which gives each its ids, aliases, source and checked parameter count. A variant whose config agrees
in those keys, such as an instruct model, is an id under `also` and shares the file.
"""

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tuneplan.planner.errors import DataFileError, InputError, UnknownNameError
from tuneplan.planner.models.config import ConfigReader, read_config_file, shown_path

CATALOG = Path(__file__).with_name("catalog")
INDEX = CATALOG / "index.json"


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model of the catalog.

    Attributes:
        id: the Hugging Face hub id, such as "meta-llama/Llama-2-7b-hf".
        aliases: short names, in lower case; the id's own last part is always one of them.
        source: where the config comes from: title, reference, date.
        parameters: all parameters, tied weights once, as transformers builds the model on the meta device.
        config_path: the bundled config.json.
    """

    id: str
    aliases: tuple[str, ...]
    source: str
    parameters: int
    config_path: Path


def entries() -> tuple[CatalogEntry, ...]:
    """Every model of the catalog, in the order of the index.

    Raises:
        DataFileError: the bundled index is broken.
    """
    return tuple(_entry(hub_id) for hub_id in _index().records)


def find(name: str) -> CatalogEntry:
    """The model of a name, whatever its case: an alias such as "70b", or a hub id.

    Raises:
        UnknownNameError: the catalog has no such name.
        DataFileError: the bundled index is broken.
    """
    return _find(name, where="plan models")


def load(name_or_path: str) -> tuple[str, ConfigReader]:
    """The model's display name and its config.

    An existing path wins over a hub id that reads the same, as in transformers; a bare word such as "70b" is looked
    up in the catalog first, so write "./70b" for a folder of that name. The display name is the hub id, or the path
    as given.

    Raises:
        InputError: the path cannot be read as a config.json.
        UnknownNameError: neither a name of the catalog nor an existing path.
        DataFileError: the bundled catalog is broken.
    """
    if _is_path(name_or_path):
        return name_or_path, ConfigReader(read_config_file(name_or_path), shown_path(name_or_path))
    entry = _find(name_or_path, where="a path to a downloaded config.json works too; plan models")
    try:
        return entry.id, ConfigReader(read_config_file(entry.config_path), entry.id)
    except InputError as error:
        raise DataFileError(f"The bundled config of {entry.id} is broken: {error}") from error


def _find(name: str, where: str) -> CatalogEntry:
    index = _index()
    hub_id = index.hub_ids.get(name.strip().lower())
    if hub_id is None:
        known = [known for hub_id, aliases in index.aliases.items() for known in (hub_id, *aliases)]
        raise UnknownNameError("model", name, known, where)
    return _entry(hub_id)


def _is_path(name: str) -> bool:
    if name.startswith((".", "~", "/")) or name.lower().endswith(".json") or "\0" in name:
        return True
    if os.sep not in name and "/" not in name and name.strip().lower() in _index().hub_ids:
        return False
    return os.path.exists(name)


class _Index(NamedTuple):
    """The index as it is needed: by hub id, and from every accepted name to its hub id."""

    sources: dict[str, str]
    records: dict[str, dict[str, Any]]
    aliases: dict[str, tuple[str, ...]]
    hub_ids: dict[str, str]


@cache
def _index() -> _Index:
    try:
        content = json.loads(INDEX.read_bytes())
        index = _Index(content["sources"], {}, {}, {})
        for record in content["models"]:
            for hub_id, aliases in {record["id"]: record["aliases"], **record.get("also", {})}.items():
                own_name = hub_id.rpartition("/")[2].lower()
                index.records[hub_id] = record
                index.aliases[hub_id] = tuple(dict.fromkeys([*aliases, own_name]))
                index.hub_ids.update(dict.fromkeys([hub_id.lower(), *index.aliases[hub_id]], hub_id))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataFileError(f"The model index {INDEX} is broken: {error!r}. Reinstall tuneplan.") from error
    return index


def _entry(hub_id: str) -> CatalogEntry:
    index = _index()
    record = index.records[hub_id]
    try:
        return CatalogEntry(
            id=hub_id,
            aliases=index.aliases[hub_id],
            source=index.sources[record["source"]],
            parameters=record["parameters"],
            config_path=CATALOG / record["file"],
        )
    except KeyError as error:
        raise DataFileError(f"The record of {hub_id} in {INDEX} is broken: {error!r}. Reinstall tuneplan.") from error
