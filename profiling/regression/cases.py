"""The cases of `plan check`: `tuneplan.toml`, or `[tool.tuneplan]` of `pyproject.toml`."""

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import click
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tuneplan.hardware_profiles.errors import ProfileError
from tuneplan.hardware_profiles.reading import read_text
from tuneplan.planner.cli.step_words import Asked, asked, request_options
from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.graph.tensor import CATEGORIES
from tuneplan.planner.units import parse_bytes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OWN_FILE, SHARED_FILE = "tuneplan.toml", "pyproject.toml"
LARGEST_BYTES = 2**20
MOST_CASES = 200
_CONFLICT = re.compile(r"^(<{7}|={7}|>{7})( |$)", re.MULTILINE)


def _bytes(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_bytes(value)
    except InputError as error:
        raise ValueError(str(error)) from None


Size = Annotated[int, BeforeValidator(_bytes), Field(ge=0, strict=True)]
Share = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class Limits(BaseModel):
    """How far a quantity may go; each limit that is given holds on its own. Sizes are bytes or text such as "12GiB"."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_bytes: Size | None = None
    max_increase: Size | None = None
    max_increase_percent: Share | None = None

    def allowed(self, before: int | None) -> int | None:
        """The most bytes that pass, given those of the baseline; None where nothing limits them."""
        found = [self.max_bytes] if self.max_bytes is not None else []
        if before is not None:
            if self.max_increase is not None:
                found.append(before + self.max_increase)
            if self.max_increase_percent is not None:
                found.append(before + int(before * self.max_increase_percent / 100))
        return min(found, default=None)

    @property
    def against_baseline(self) -> bool:
        """Whether a growth is limited."""
        return self.max_increase is not None or self.max_increase_percent is not None


NO_GROWTH = Limits(max_increase=0)


class _Case(BaseModel):
    """A case as it is written; what is not named here is a word of `plan trace`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    entry_point: str | None = None
    device: Literal["meta", "cpu", "gpu"] = "meta"
    time_limit_seconds: Annotated[float, Field(gt=0, le=86400)] = 300.0
    max_bytes: Size | None = None
    max_increase: Size | None = None
    max_increase_percent: Share | None = None
    components: dict[str, Limits] = {}


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    baseline: str = "tuneplan-baseline.toml"
    limits: Limits = Limits()
    cases: dict[str, _Case] = {}


@dataclass(frozen=True, slots=True)
class Case:
    """One case.

    Attributes:
        name: its own.
        device: "meta" for a trace, "cpu" or "gpu" for a real step.
        entry_point: `file.py:function` or `module:function`; "" where the words say what to build.
        time_limit_seconds: of an entry point.
        words: of `plan trace`, without dashes.
        limits: of the peak.
        component_limits: by name of the component; those that are not named keep the limits of the peak's growth.
        line: of the case in its file.
    """

    name: str
    device: str
    entry_point: str
    time_limit_seconds: float
    words: Mapping[str, Any]
    limits: Limits
    component_limits: Mapping[str, Limits]
    line: int

    def settings(self) -> dict[str, str | int | float | bool]:
        """What is measured, for the baseline: a baseline of other settings is stale."""
        own = {"entry_point": self.entry_point} if self.entry_point else {}
        return {**own, "device": self.device, **dict(sorted(self.words.items()))}

    def limits_of(self, component: str) -> Limits:
        """Those of a component: its own, or those of the peak without the peak's absolute bound."""
        own = self.component_limits.get(component)
        return own if own is not None else self.limits.model_copy(update={"max_bytes": None})

    def asked(self, root: Path) -> Asked:
        """The step of a case with words. Raises InputError."""
        given: dict[str, Any] = {p.name: p.get_default(click.Context(_words)) for p in _words.params if p.name is not None}
        by_word = {_word(p): p for p in _words.params}
        for word, value in self.words.items():
            parameter = by_word[word]
            given[str(parameter.name)] = self._converted(parameter, word, value)
        model = given["model"]
        for name in ("configs", "config_formats"):
            text = given[name]
            given[name] = tuple(item.strip() for item in text.split(",")) if isinstance(text, str) else ()
        given["configs"] = tuple(str(root / name) for name in given["configs"])
        if not given["configs"] and (not isinstance(model, str) or not model.strip()):
            raise InputError(f"case {self.name} names no model; give it model = ... or entry_point = ...")
        if model and (root / model).exists():
            given["model"] = str(root / model)
        if given["peft_config"] is not None:
            given["peft_config"] = str(root / given["peft_config"])
        try:
            return asked(given, {str(by_word[word].name) for word in self.words})
        except (InputError, ProfileError) as error:
            raise InputError(f"case {self.name}: {error}") from error

    def _converted(self, parameter: click.Parameter, word: str, value: Any) -> Any:
        if isinstance(value, list):
            value = ",".join(str(item) for item in value)
        try:
            return parameter.type.convert(value if isinstance(value, bool | int | float) else str(value), parameter, None)
        except (click.BadParameter, TypeError, ValueError) as error:
            reason = error.format_message() if isinstance(error, click.BadParameter) else str(error)
            raise InputError(f"case {self.name}: {word} = {value!r} cannot be used: {reason}") from error


@dataclass(frozen=True, slots=True)
class Cases:
    """The file.

    Attributes:
        path: where it is.
        root: its folder: entry points, models and the baseline are relative to it.
        baseline: the file that remembers.
        cases: by name, in the order of the file.
    """

    path: Path
    root: Path
    baseline: Path
    cases: Mapping[str, Case]

    def chosen(self, names: Iterable[str]) -> list[Case]:
        """Those of these names, or all. Raises UnknownNameError."""
        wanted = list(names)
        for name in wanted:
            if name not in self.cases:
                raise UnknownNameError("case", name, self.cases, str(self.path))
        return [case for case in self.cases.values() if not wanted or case.name in wanted]


@click.command()
@request_options
def _words(**_: Any) -> None:
    """The words that a case may use."""


def _word(parameter: click.Parameter) -> str:
    """An option's key in a case: its long name with underscores."""
    return max(parameter.opts, key=len).lstrip("-").replace("-", "_")


def find(folder: Path) -> Path:
    """The file of cases in a folder: tuneplan.toml, else a pyproject.toml with [tool.tuneplan]. Raises InputError."""
    own, shared = folder / OWN_FILE, folder / SHARED_FILE
    if own.exists():
        return own
    if shared.exists() and "tuneplan" in read_table(shared).get("tool", {}):
        return shared
    raise InputError(
        f"{folder} has neither a {OWN_FILE} nor [tool.tuneplan] in a {SHARED_FILE}; write cases into one, or give --config FILE"
    )


def load(path: Path) -> Cases:
    """The cases of a file. Raises InputError for what is no TOML, unknown keys and values that make no sense."""
    table = read_table(path)
    if path.name == SHARED_FILE:
        table = table.get("tool", {}).get("tuneplan", {})
    try:
        content = _File.model_validate(table)
    except ValidationError as error:
        raise InputError(f"{path}: {complaint(error, _keys(error))}") from error
    if not content.cases:
        raise InputError(f"{path} has no case; add a table [cases.NAME] with a model or an entry_point")
    if len(content.cases) > MOST_CASES:
        raise InputError(f"{path} has {len(content.cases)} cases; {MOST_CASES} are the most that are checked")
    text = path.read_text(encoding="utf-8-sig")
    cases = {name: _case(name, case, content.limits, _line_of(name, text)) for name, case in content.cases.items()}
    root = path.resolve().parent
    return Cases(path, root, root / content.baseline, cases)


def read_table(path: Path) -> dict[str, Any]:
    """The table of a TOML file. Raises InputError, with its own words for a merge conflict."""
    try:
        text = read_text(path, LARGEST_BYTES)
    except ProfileError as error:
        raise InputError(str(error)) from error
    conflict = _CONFLICT.search(text)
    if conflict:
        number = text.count("\n", 0, conflict.start()) + 1
        raise InputError(f"{path}:{number} is in the middle of a merge conflict; resolve it, then run plan check --update")
    try:
        table: dict[str, Any] = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not TOML: {error}; correct it by hand or from version control") from error
    return table


def complaint(error: ValidationError, known: Iterable[str] = ()) -> str:
    """The first thing that pydantic found, in a line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(piece) for piece in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {where}; {'known are ' + ', '.join(known) if known else 'remove it'}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where or 'the file'}: {message[0].lower()}{message[1:]}, not {str(first['input'])[:60]!r}"


def _keys(error: ValidationError) -> list[str]:
    where = error.errors(include_url=False)[0]["loc"]
    return list(_File.model_fields) if len(where) == 1 else list(Limits.model_fields)


def _case(name: str, case: _Case, limits: Limits, line: int) -> Case:
    words: dict[str, Any] = dict(case.model_extra or {})
    known = {_word(p) for p in _words.params}
    for word in words:
        if word not in known:
            keys = [key for key in _Case.model_fields if key != "model_config"]
            raise UnknownNameError(f"key of case {name}", word, [*known, *keys], "plan trace --help")
    for component in case.components:
        if component not in CATEGORIES:
            raise UnknownNameError(f"component of case {name}", component, CATEGORIES, "plan trace --json")
    if case.entry_point is not None and words:
        raise InputError(f"case {name} has an entry_point and {min(words)}; the entry point builds everything, so give one")
    if case.entry_point is None and "model" not in words:
        raise InputError(f"case {name} names neither a model nor an entry_point; give it one of them")
    given = {k: v for k in Limits.model_fields if (v := getattr(case, k)) is not None}
    own = Limits(**{**limits.model_dump(), **given})
    if not own.against_baseline:
        own = own.model_copy(update={"max_increase": 0})
    entry = case.entry_point or ""
    return Case(name, case.device, entry, case.time_limit_seconds, words, own, case.components, line)


def _line_of(name: str, text: str) -> int:
    """Where a case's table begins; 1 where it cannot be told."""
    pattern = re.compile(rf"^\s*\[\s*(tool\.tuneplan\.)?cases\.[\"']?{re.escape(name)}[\"']?\s*\]", re.MULTILINE)
    found = pattern.search(text)
    return text.count("\n", 0, found.start()) + 1 + found.group().count("\n") if found else 1
