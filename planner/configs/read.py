"""Reading configuration files: which tool's they are, what they say together, and what became of every key."""

import os
from collections.abc import Collection, Sequence

from tuneplan.planner.configs.facts import Facts
from tuneplan.planner.configs.registry import detect, find, reader
from tuneplan.planner.configs.resolve import resolve
from tuneplan.planner.configs.training_config import TrainingConfig
from tuneplan.planner.errors import InputError
from tuneplan.planner.json_file import parse_json
from tuneplan.planner.models.config import shown_path
from tuneplan.planner.yaml_file import YamlFile, parse_yaml, read_text

MOST_FILES = 8


def read_configs(
    paths: Sequence[str | os.PathLike[str]], formats: Sequence[str] = (), model: str | None = None, given: Collection[str] = ()
) -> TrainingConfig:
    """What files say together; later ones override earlier ones.

    Args:
        paths: of YAML or JSON files, any number of tools.
        formats: their tools in the same order; empty to recognise each by its keys.
        model: instead of the one that the files name.
        given: names of options that the files do not have to say, because the user did.

    Raises:
        InputError: a file, or anything in it, cannot be used; names file and line.
        UnknownNameError: a format that is not known.
    """
    if len(paths) > MOST_FILES:
        raise InputError(f"{len(paths)} config files; {MOST_FILES} are the most that are read together")
    if formats and len(formats) != len(paths):
        raise InputError(f"{len(formats)} x --config-format for {len(paths)} x --config; give one for each, or none")
    facts = Facts()
    kinds: dict[str, str] = {}
    by_name: set[str] = set()
    wanted = [find(name) for name in formats]
    for index, path in enumerate(paths):
        file = open_config(path)
        kind = wanted[index] if wanted else detect(file)
        if file.name.strip("'") in by_name:
            continue
        if file.name.strip("'") in kinds:
            raise InputError(f"{file.name} is given twice; give it once")
        kinds[file.name.strip("'")] = kind
        reader(kind)(file, facts, kind)
        by_name |= _read_named(facts, kinds, os.path.dirname(os.path.abspath(os.path.expanduser(os.fspath(path)))))
    return resolve(facts, kinds, model, given)


def _read_named(facts: Facts, kinds: dict[str, str], folder: str) -> set[str]:
    """Read the DeepSpeed files that the last file names, relative to the present folder or to its own; gives their names."""
    found: set[str] = set()
    for path, source in facts.named:
        where = next((p for p in (path, os.path.join(folder, path)) if "\0" not in p and os.path.isfile(p)), None)
        if where is None or not path.lower().endswith(".json"):
            facts.warn(f"{source}: no DeepSpeed file is found there; figures are without it. Give it with --config")
            continue
        file = open_config(where)
        if file.name.strip("'") not in kinds:
            kinds[file.name.strip("'")] = "deepspeed"
            found.add(file.name.strip("'"))
            reader("deepspeed")(file, facts, "deepspeed")
    facts.named.clear()
    return found


def open_config(path: str | os.PathLike[str]) -> YamlFile:
    """The content of one file, which has to be a mapping. Raises InputError."""
    name = shown_path(path)
    text = read_text(path, "YAML or JSON file")
    as_json = os.fspath(path).lower().endswith(".json") or text.lstrip().startswith("{")
    file = parse_json(text, name) if as_json else parse_yaml(text, name, "1.1")
    if not isinstance(file.data, dict) or not file.data:
        raise file.error((), "a configuration is a mapping of keys. Write such as 'learning_rate: 1.0e-4'.")
    return file
