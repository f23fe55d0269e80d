"""Plain values as YAML text: mappings, lists, text, numbers, true, false and null, with comments between the keys.

Only what JSON has is written, in block style; text is quoted wherever a YAML 1.1 or 1.2 reader could take it for something else.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_PLAIN = re.compile(r"[A-Za-z_/.][A-Za-z0-9_/.+@-]*")
_NOT_TEXT = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", ".nan", ".inf", "_"}
WIDTH = 100


@dataclass(frozen=True, slots=True)
class Commented:
    """A value with a comment above its key."""

    value: Any
    comment: str


def comment(text: str, indent: int = 0) -> str:
    """Text as comment lines, broken at WIDTH."""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + len(word) + 1 > WIDTH - indent:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return "".join(f"{' ' * indent}# {piece}\n" for piece in [*lines, line])


def document(values: Mapping[str, Any], head: str = "") -> str:
    """A whole file: a comment, then the mapping. Values of None are written as null."""
    opened = "".join(comment(line) if line else "#\n" for line in head.splitlines())
    return opened + _mapping(values, 0)


def _mapping(values: Mapping[str, Any], indent: int) -> str:
    pieces = []
    for key, given in values.items():
        value = given
        if isinstance(given, Commented):
            pieces.append(comment(given.comment, indent))
            value = given.value
        pieces.append(f"{' ' * indent}{scalar(key)}:{_value(value, indent)}")
    return "".join(pieces)


def _value(value: Any, indent: int) -> str:
    """What follows a key's colon, with its line end."""
    if isinstance(value, Mapping):
        return "\n" + _mapping(value, indent + 2) if value else " {}\n"
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            return " []\n"
        if not any(isinstance(item, Mapping | list | tuple) for item in value):
            return f" [{', '.join(scalar(item) for item in value)}]\n"
        return "\n" + "".join(_item(item, indent + 2) for item in value)
    if isinstance(value, str) and "\n" in value:
        lines = "".join(f"{' ' * (indent + 2)}{line}\n" if line else "\n" for line in value.rstrip("\n").split("\n"))
        return f" |\n{lines}"
    return f" {scalar(value)}\n"


def _item(item: Any, indent: int) -> str:
    if not isinstance(item, Mapping):
        return f"{' ' * indent}- {scalar(item)}\n"
    text = _mapping(item, indent + 2)
    return f"{' ' * indent}- {text[indent + 2 :]}"


def scalar(value: Any) -> str:
    """One value that is neither a mapping nor a list."""
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _NOT_TEXT and not value.startswith(".")
        return value if plain else json.dumps(value, ensure_ascii=True)
    if isinstance(value, float):
        # YAML 1.1 takes 2e-05 for text: a number needs a point
        text = repr(value)
        return text if "e" not in text or "." in text.split("e")[0] else text.replace("e", ".0e")
    return json.dumps(value)
