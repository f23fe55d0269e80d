"""What the files say, one fact a name, with where it was said; a later file overrides an earlier one, and that is noted."""

from dataclasses import dataclass, field
from typing import Any

from tuneplan.planner.configs.accounting import Entry
from tuneplan.planner.secrets import shown


@dataclass(frozen=True, slots=True)
class Fact:
    """A value and its origin.

    Attributes:
        value: in the planner's words.
        source: file, line and key, or whose default it is.
        explicit: a file says so; a tool's default gives way to what any file says.
    """

    value: Any
    source: str
    explicit: bool


@dataclass(slots=True)
class Facts:
    """All that is known so far.

    Attributes:
        found: by name.
        entries: every key of every file.
        warnings: in the order of the files.
        stacks: software that takes part.
        objective_options: what only one objective has.
        named: files of DeepSpeed that a file names, and where.
    """

    found: dict[str, Fact] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stacks: list[str] = field(default_factory=list)
    objective_options: dict[str, Any] = field(default_factory=dict)
    named: list[tuple[str, str]] = field(default_factory=list)

    def set(self, name: str, value: Any, source: str, explicit: bool = True) -> None:
        """Note a fact. An explicit one replaces what was there; a default replaces nothing that is explicit."""
        before = self.found.get(name)
        if before is not None and before.explicit:
            if not explicit:
                return
            if before.value != value:
                plain = all(isinstance(v, str | int | float) for v in (before.value, value))
                first, second = (f"{shown(v, name)} by " if plain else "given by " for v in (before.value, value))
                self.warn(f"{name.replace('_', ' ')} is {first}{before.source} and {second}{source}; the later one is taken")
        self.found[name] = Fact(value, source, explicit)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a fact."""
        fact = self.found.get(name)
        return default if fact is None else fact.value

    def has(self, name: str) -> bool:
        """Whether a file says it."""
        return name in self.found and self.found[name].explicit

    def source(self, name: str) -> str:
        """Where a fact comes from; "" where there is none."""
        return self.found[name].source if name in self.found else ""

    def warn(self, text: str) -> None:
        """A warning, once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def stack(self, name: str) -> None:
        """A piece of software that takes part."""
        if name not in self.stacks:
            self.stacks.append(name)
