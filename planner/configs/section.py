"""Typed access to the keys of one section of a file; what is read counts as used, the rest is accounted for at the end."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from tuneplan.planner.configs.accounting import IRRELEVANT, NOT_MODELLED, USED, Entry
from tuneplan.planner.configs.facts import Facts
from tuneplan.planner.configs.table import OFF, Table
from tuneplan.planner.errors import InputError
from tuneplan.planner.secrets import shown, shown_key
from tuneplan.planner.yaml_file import Path, YamlFile

_TEMPLATE = re.compile(r"\$\{|\{\{|\{%|<%|^\$[A-Z_]+$|^<[A-Z_]+>$")
_TEXT_NUMBER = re.compile(r"[-+]?[0-9]{1,20}(?:\.[0-9]{0,20})?(?:[eE][-+]?[0-9]{1,3})?")
_NOT_A_NUMBER = re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+")
MISSING = object()


@dataclass(slots=True)
class Section:
    """A mapping of a file, read key by key.

    Attributes:
        file: with the lines.
        path: of the mapping in the file.
        data: the mapping, keys under their present names.
        table: of its keys.
        facts: where entries and warnings go.
        unknown: "error" or what the tool does with a key that it does not know, such as "TRL's script ignores it".
        skipped: keys that another reader accounts for.
        numbers_in_text: the tool turns a text such as "1e-4" into a number.
    """

    file: YamlFile
    path: Path
    data: Mapping[str, Any]
    table: Table
    facts: Facts
    unknown: str = "error"
    skipped: set[str] = field(default_factory=set)
    numbers_in_text: bool = False
    _read: set[str] = field(default_factory=set)

    def __contains__(self, key: str) -> bool:
        """Whether the file gives the key, under any of its names, with a value."""
        return self._given(key) is not MISSING

    def error(self, key: str, message: str) -> InputError:
        """An error at a key's line."""
        return self.file.error((*self.path, self._name(key)), message)

    def warn(self, key: str, text: str) -> None:
        """A warning about a key."""
        self.facts.warn(f"{self.source(key)}: {text}")

    def source(self, key: str) -> str:
        """File, line and key, for messages."""
        name = self._name(key)
        return f"{self.file.name} line {self.file.line((*self.path, name))} ({shown_key(name)})"

    def _name(self, key: str) -> str:
        """The name under which the file gives a key."""
        if key in self.data:
            return key
        return next((old for old, new in self.table.renamed.items() if new == key and old in self.data), key)

    def _given(self, key: str) -> Any:
        name = self._name(key)
        self._read.add(name)
        value = self.data.get(name, MISSING)
        return MISSING if value is None else value

    def raw(self, key: str, default: Any = None) -> Any:
        """The value as it stands."""
        value = self._given(key)
        return default if value is MISSING else value

    def _numeric(self, key: str) -> Any:
        """A value that should be a number, converted as the tool does."""
        value = self._given(key)
        if isinstance(value, str):
            self._refuse_template(key, value)
            if self.numbers_in_text and _TEXT_NUMBER.fullmatch(value):
                return float(value)
        return value

    def text(self, key: str, default: str | None = None) -> str | None:
        """A text; templates are refused."""
        value = self._given(key)
        if value is MISSING:
            return default
        if not isinstance(value, str):
            raise self.error(key, f"{self._shown(key, value)} is no text. Write a name.")
        self._refuse_template(key, value)
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self._given(key)
        if value is MISSING:
            return default
        if isinstance(value, str):
            self._refuse_template(key, value)
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise self.error(key, f"{self._shown(key, value)} is neither true nor false. Write one of them.")

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int | None:
        """A whole number, at least `least`."""
        value = self._numeric(key)
        if value is MISSING:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(key, f"{self._shown(key, value)} is no whole number{self._hint(value)}. Write such as 8.")
        if value < least:
            raise self.error(key, f"{value} is too small; the least is {least}. Correct it.")
        if value > 2**53:
            raise self.error(key, f"{value:.3g} is too large to be meant. Correct it.")
        return value

    def number(self, key: str, default: float | None = None) -> float | None:
        """A finite number."""
        value = self._numeric(key)
        if value is MISSING:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(key, f"{self._shown(key, value)} is no number{self._hint(value)}. Write such as 1.0.")
        return float(value)

    def choice(self, key: str, known: Iterable[str], default: str | None = None) -> str | None:
        """One of several words, in lower case."""
        value = self.text(key, default)
        if value is None or key not in self:
            return value
        names = {name.lower(): name for name in known}
        if value.lower() not in names:
            close = get_close_matches(value.lower()[:60], names, n=2, cutoff=0.6)
            hint = f"Did you mean {' or '.join(close)}?" if close else f"Known are {', '.join(sorted(names.values()))}."
            raise self.error(key, f"{self._shown(key, value)} is not known. {hint}")
        return names[value.lower()]

    def names(self, key: str) -> tuple[str, ...] | None:
        """A list of words; one word, or several with commas, is a list too."""
        value = self._given(key)
        if value is MISSING:
            return None
        items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise self.error(key, f"{self._shown(key, value)} is no list of names. Write such as [q_proj, v_proj].")
        for item in items:
            self._refuse_template(key, item)
        return tuple(item for item in items if item)

    def mapping(self, key: str) -> dict[str, Any] | None:
        """A section below this one."""
        value = self._given(key)
        if value is MISSING:
            return None
        if not isinstance(value, dict):
            raise self.error(key, f"{self._shown(key, value)} is no section. Write keys below it.")
        return value

    def fact(self, name: str, value: Any, key: str, default_of: str = "") -> None:
        """Note a fact that a key gives; where the file does not have the key, it is the default of a tool."""
        given = key in self
        if value is None:
            return
        self.facts.set(name, value, self.source(key) if given else f"default of {default_of}", explicit=given)

    def finish(self) -> None:
        """Account for every key. Raises InputError for one that is not known, where the tool refuses it too."""
        for key, value in self.data.items():
            if key in self.skipped:
                continue
            name = self.table.renamed.get(key, key)
            old = "" if key in (name, f"fsdp_{name}") else f" ({name} in present versions)"
            why = self.table.reason("irrelevant", name)
            missing = self.table.reason("not_modelled", name)
            if name in self.table.used and (name in self._read or key in self._read):
                self.account(key, USED, self.table.used[name] + old)
            elif name in self.table.used:
                self.account(key, IRRELEVANT, f"without effect here: {self.table.used[name]}{old}")
            elif why is not None:
                self.account(key, IRRELEVANT, why + old)
            elif missing is not None:
                self._missing(key, name, value, missing + old)
            else:
                self._unknown(key)

    def _missing(self, key: str, name: str, value: Any, what: str) -> None:
        default = self.table.defaults.get(name, MISSING)
        empty = isinstance(value, list | dict) and not value
        if empty or value == default or any(value is off or (value == off and type(value) is type(off)) for off in OFF):
            self.account(key, IRRELEVANT, f"at its default: {what}")
            return
        self.account(key, NOT_MODELLED, what)
        self.facts.warn(f"{self.source(key)} is not modelled: {what}")

    def _unknown(self, key: str) -> None:
        close = get_close_matches(key.lower()[:60], self.table.names(), n=2, cutoff=0.75)
        hint = f"Did you mean {' or '.join(repr(name) for name in close)}?" if close else "Check its name, or remove it."
        if self.unknown == "error":
            raise self.error(key, f"unknown key. {hint}")
        self.account(key, NOT_MODELLED, f"unknown key; {self.unknown}")
        self.facts.warn(f"{self.source(key)} is an unknown key; {self.unknown}. {hint}")

    def account(self, key: str, status: str, note: str) -> None:
        """Note what became of a key."""
        path = (*self.path, key)
        dotted = ".".join(str(step) for step in path)
        self.facts.entries.append(Entry(self.file.name.strip("'"), self.file.line(path), shown_key(dotted), status, note))

    def _shown(self, key: str, value: Any) -> str:
        return shown(value, self._name(key))

    def _refuse_template(self, key: str, value: str) -> None:
        if _TEMPLATE.search(value):
            raise self.error(key, "the value is a template that nobody has filled in. Write the value out.")

    @staticmethod
    def _hint(value: Any) -> str:
        if isinstance(value, str) and _NOT_A_NUMBER.fullmatch(value):
            return ", because YAML 1.1 reads a number with e only with a point and a sign, as in 1.0e-4"
        return ""
