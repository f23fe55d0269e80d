"""Reading a YAML file that anybody may have written: plain data, the line of every value, and errors that say what to do.

Only the composer of PyYAML's SafeLoader is used, and the values are built here: no tag makes an object, anchors and
aliases are refused before they can multiply (so a file of a few lines cannot become gigabytes), a key given twice is an
error, and size, depth and number of values are bounded. Scalars are read as YAML 1.2 reads them (`no`, `on` and `12:30`
stay text), or as YAML 1.1 does where the file is another tool's, which reads it so.
"""

import os
import re
import stat
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeAlias

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.config import shown_path
from tuneplan.planner.secrets import shown_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import ValidationError

MOST_BYTES = 8 * 2**20
MOST_NODES = 500_000
DEEPEST = 30
LONGEST_NUMBER = 40

Path: TypeAlias = tuple[str | int, ...]

_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_CONSTANTS = {"null": None, "~": None, "": None, "true": True, "false": False}
_WORDS_1_1 = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


@dataclass(frozen=True, slots=True)
class YamlFile:
    """The content of a file.

    Attributes:
        name: the file as messages show it.
        data: mappings, lists, text, numbers, true, false and None.
        lines: the line, from 1, of every value, and for values of mappings that of the key, by path.
    """

    name: str
    data: Any
    lines: dict[Path, int]

    def line(self, path: Path) -> int:
        """The line of a value, or of the nearest value around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def error(self, path: Path, message: str) -> InputError:
        """An error about a value, opened by the file, the line and where the value stands."""
        where = shown_place(path)
        return InputError(f"{self.name} line {self.line(path)}: {where + ': ' if where else ''}{message}")


def read_yaml(path: str | os.PathLike[str]) -> YamlFile:
    """Read a file of at most MOST_BYTES.

    Raises:
        InputError: it cannot be read, is not YAML, or uses what is refused; names the file and the line.
    """
    return parse_yaml(read_text(path, "YAML file"), shown_path(path))


def read_text(path: str | os.PathLike[str], kind: str) -> str:
    """The text of a file of at most MOST_BYTES. `kind`: of file, for messages. Raises InputError where it cannot be read."""
    name = shown_path(path)
    try:
        full = os.path.expanduser(os.fspath(path))
        if not stat.S_ISREG(os.stat(full).st_mode):
            raise InputError(f"{name} is not a regular file. Give the path of a {kind}.")
        with open(full, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"Cannot read {name}: {reason}. Check the path and its permissions.") from None
    if len(data) > MOST_BYTES:
        raise InputError(f"{name} is larger than {MOST_BYTES // 2**20} MiB. Split the file, or give like entries once.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None


def parse_yaml(text: str, name: str, version: str = "1.2") -> YamlFile:
    """Read a text. `name` opens every message, `version` decides how plain scalars are read. Raises InputError as `read_yaml`."""
    try:
        import yaml
    except ImportError:
        raise InputError(
            "reading YAML needs PyYAML: pip install 'tuneplan[configs]'; plan capacity needs pip install 'tuneplan[capacity]'"
        ) from None
    fast: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _refuse_early(yaml, fast, text, name)
        node = yaml.compose(text, Loader=fast)
        lines: dict[Path, int] = {}
        data = None if node is None else _Builder(yaml, name, lines, version).value(node, (), 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        problem = error.problem or error.context or "broken"
        if problem.startswith("but ") and error.context:
            problem = f"{error.context}, {problem}"
        raise InputError(f"{name}{line}: not valid YAML: {problem}. Correct the file.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{name}: not valid YAML: {' '.join(str(error).split())[:200]}. Correct the file.") from None
    except RecursionError:
        raise InputError(f"{name}: nested too deeply. Write at most {DEEPEST} levels.") from None
    if data is None:
        raise InputError(f"{name} is empty. Write at least one entry.")
    return YamlFile(name, data, lines)


def _refuse_early(yaml: Any, loader: Any, text: str, name: str) -> None:
    """Look at the stream of events, which costs memory for one event at a time: anchors, tags, depth, number of values."""
    depth = 0
    for nodes, event in enumerate(yaml.parse(text, Loader=loader), start=1):
        line = event.start_mark.line + 1
        if getattr(event, "anchor", None) is not None:
            kind = "alias *" if isinstance(event, yaml.AliasEvent) else "anchor &"
            raise InputError(f"{name} line {line}: {kind}{event.anchor[:40]} is refused. Write the value out where it is needed.")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise InputError(f"{name} line {line}: the tag {tag[:60]!r} is refused. Write plain values.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST:
            raise InputError(f"{name} line {line}: nested more than {DEEPEST} levels deep. Flatten the file.")
        if nodes > MOST_NODES:
            raise InputError(f"{name} line {line}: more than {MOST_NODES:,} values. Split the file, or give like entries once.")


@dataclass(slots=True)
class _Builder:
    """Turns nodes into values and notes their lines."""

    yaml: Any
    name: str
    lines: dict[Path, int]
    version: str

    def value(self, node: Any, path: Path, depth: int) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, self.yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, self.yaml.SequenceNode):
            return [self.value(item, (*path, i), depth + 1) for i, item in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: Any, path: Path, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if isinstance(key_node, self.yaml.MappingNode):
                raise InputError(f"{self.name} line {line}: a key must be a word; fill in a template such as {{{{ x }}}} first.")
            if not isinstance(key_node, self.yaml.ScalarNode) or not key_node.value.strip():
                raise InputError(f"{self.name} line {line}: a key must be a word. Write such as 'name: value'.")
            key = key_node.value
            if key == "<<":
                raise InputError(f"{self.name} line {line}: merging with << is refused. Write the values out.")
            place = (*path, key)
            if key in result:
                first = self.lines[place]
                raise InputError(
                    f"{self.name} line {line}: {shown_key(key)!r} was given on line {first} already. Remove one of them."
                )
            self.lines[place] = line
            result[key] = self.value(value_node, place, depth + 1)
        return result

    def _scalar(self, node: Any) -> Any:
        text: str = node.value
        if node.style:  # None or "" where it is plain
            return text
        if self.version == "1.1":
            return self._scalar_1_1(text, node.tag.rpartition(":")[2])
        plain = text.lower()
        if plain in _CONSTANTS:
            return _CONSTANTS[plain]
        if len(text) <= LONGEST_NUMBER and _INTEGER.fullmatch(text):
            return int(text)
        if len(text) <= LONGEST_NUMBER and _FLOAT.fullmatch(text):
            return float(text)
        return text

    @staticmethod
    def _scalar_1_1(text: str, tag: str) -> Any:
        """A plain scalar by the tag that PyYAML's resolver gives it; dates stay text."""
        if len(text) > LONGEST_NUMBER or tag not in ("null", "bool", "int", "float"):
            return text
        if tag == "null":
            return None
        if tag == "bool":
            return _WORDS_1_1[text.lower()]
        plain = text.replace("_", "").lower()
        if ":" in plain:
            return text  # hours and minutes in a file of settings are a slip
        if tag == "float":
            return float(plain.replace(".inf", "inf").replace(".nan", "nan"))
        octal = plain.lstrip("+-").startswith("0") and plain.lstrip("+-0").isdigit()
        return int(plain, 8 if octal else 0)


def shown_place(path: Path) -> str:
    """A path as messages show it: `serving[2].requests`."""
    text = ""
    for step in path:
        name = f"[{step}]" if isinstance(step, int) else shown_key(step)
        text += f".{name}" if text and not isinstance(step, int) else name
    return text


def unknown_key(key: str, known: "Iterable[str]") -> str:
    """What to say about a key that is not known, with the closest ones."""
    names = sorted(known)
    close = get_close_matches(key.lower()[:60], names, n=2, cutoff=0.6)
    hint = f"Did you mean {' or '.join(repr(name) for name in close)}?" if close else f"Known here: {', '.join(names)}."
    return f"unknown key {shown_key(key)!r}. {hint}"


def first_problem(file: YamlFile, error: "ValidationError", keys: dict[str, "Iterable[str]"]) -> InputError:
    """The first thing that pydantic found, at its line.

    Args:
        file: the file that was checked.
        error: pydantic's findings; an unknown key goes first, because it is the cause of a missing one.
        keys: keys known under each name of a section (the last word of the path), for close matches; "" for the top.
    """
    problems = error.errors(include_url=False, include_context=False)
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    path: Path = tuple(problem["loc"])
    if problem["type"] == "extra_forbidden":
        sections = [step for step in path[:-1] if isinstance(step, str)]
        return file.error(path, unknown_key(str(path[-1]), keys[sections[-1] if sections else ""]))
    if problem["type"] == "missing":
        return file.error(path[:-1], f"the key {path[-1]!r} is missing. Add it; docs/capacity.md says what it means.")
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    shown = "" if isinstance(given, dict | list) or problem["type"] == "value_error" else f" (given: {repr(given)[:60]})"
    return file.error(path, message + shown)
