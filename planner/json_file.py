"""Reading a JSON file that anybody may have written: plain data, the line of every value, no key twice, bounded depth."""

import re
from dataclasses import dataclass, field
from json.decoder import JSONDecoder
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.secrets import shown_key
from tuneplan.planner.yaml_file import DEEPEST, LONGEST_NUMBER, MOST_NODES, Path, YamlFile

_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_STRINGS = JSONDecoder()
_WORDS = {"true": True, "false": False, "null": None}


def parse_json(text: str, name: str) -> YamlFile:
    """Read a text. `name` opens every message.

    Raises:
        InputError: it is not JSON, gives a key twice, or is too deep or too long; names the line.
    """
    reader = _Reader(text, name)
    data, end = reader.value(reader.skip(0), ())
    end = reader.skip(end)
    if end != len(text):
        raise reader.error(end, "more text after the end of the data")
    return YamlFile(name, data, reader.lines)


@dataclass(slots=True)
class _Reader:
    """A cursor over the text; every method takes a place and gives what it read and the place after it."""

    text: str
    name: str
    lines: dict[Path, int] = field(default_factory=dict)
    seen: tuple[int, int] = (0, 1)

    def error(self, place: int, problem: str) -> InputError:
        line = self.text.count("\n", 0, place) + 1
        return InputError(f"{self.name} line {line}: not valid JSON: {problem}. Correct the file.")

    def line(self, place: int) -> int:
        """The line of a place that is not before the last one asked for."""
        before, line = self.seen
        self.seen = place, line + self.text.count("\n", before, place)
        return self.seen[1]

    def skip(self, place: int) -> int:
        match = _SPACE.match(self.text, place)
        return match.end() if match else place

    def value(self, place: int, path: Path) -> tuple[Any, int]:
        if len(path) > DEEPEST:
            raise self.error(place, f"nested more than {DEEPEST} levels deep")
        if len(self.lines) > MOST_NODES:
            raise self.error(place, f"more than {MOST_NODES:,} values")
        self.lines.setdefault(path, self.line(place))
        first = self.text[place : place + 1]
        if first == "{":
            return self._object(place, path)
        if first == "[":
            return self._list(place, path)
        if first == '"':
            return self._string(place)
        match = _NUMBER.match(self.text, place)
        if match and match.end() - place <= LONGEST_NUMBER:
            whole = match.group(2) is None and match.group(3) is None
            return (int if whole else float)(match.group()), match.end()
        for word, meaning in _WORDS.items():
            if self.text.startswith(word, place):
                return meaning, place + len(word)
        raise self.error(place, "a value is missing" if first else "the file ends where a value should be")

    def _string(self, place: int) -> tuple[str, int]:
        try:
            text, end = _STRINGS.raw_decode(self.text, place)
        except (ValueError, RecursionError):
            raise self.error(place, "a text that is not closed, or has an unknown escape") from None
        return str(text), int(end)

    def _object(self, place: int, path: Path) -> tuple[dict[str, Any], int]:
        result: dict[str, Any] = {}
        place = self.skip(place + 1)
        if self.text.startswith("}", place):
            return result, place + 1
        while True:
            if not self.text.startswith('"', place):
                raise self.error(place, "a key in double quotes is missing")
            line = self.line(place)
            key, end = self._string(place)
            step = (*path, key)
            if key in result:
                first = self.lines[step]
                raise InputError(f"{self.name} line {line}: {shown_key(key)!r} was given on line {first} already. Remove one.")
            self.lines[step] = line
            place = self.skip(end)
            if not self.text.startswith(":", place):
                raise self.error(place, "a colon is missing after a key")
            result[key], end = self.value(self.skip(place + 1), step)
            place = self.skip(end)
            if self.text.startswith("}", place):
                return result, place + 1
            if not self.text.startswith(",", place):
                raise self.error(place, "a comma or } is missing")
            place = self.skip(place + 1)

    def _list(self, place: int, path: Path) -> tuple[list[Any], int]:
        result: list[Any] = []
        place = self.skip(place + 1)
        if self.text.startswith("]", place):
            return result, place + 1
        while True:
            item, end = self.value(place, (*path, len(result)))
            result.append(item)
            place = self.skip(end)
            if self.text.startswith("]", place):
                return result, place + 1
            if not self.text.startswith(",", place):
                raise self.error(place, "a comma or ] is missing")
            place = self.skip(place + 1)
