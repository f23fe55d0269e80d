"""From words to a method: `lora(r=16,target_modules=q_proj,v_proj)`, `quantized_base+lora`, `qlora(r=64)`.

A method is parts joined by `+`; options are in PEFT's own words. An option of a preset goes to the part that has it.
"""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.methods.method import Method
from tuneplan.planner.methods.part import Part, options
from tuneplan.planner.methods.registry import PARTS, PRESETS, names

MAXIMUM_TEXT = 2000
WHOLE_NUMBERS = ("layers_to_transform", "token_indices")
_TERM = re.compile(r"\s*([A-Za-z0-9_\-]+)\s*(?:\(([^()]*)\))?\s*")
_TRUE = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def parse(text: str, overrides: Mapping[str, Any] | None = None) -> Method:
    """The method of a text.

    Args:
        text: names joined by `+`, each with options in parentheses.
        overrides: options from the command line's short forms (`--rank`), applied to every part that has them.

    Raises:
        InputError: an option that no part has, a value of the wrong type, a part given twice, parts that clash.
    """
    if len(text) > MAXIMUM_TEXT:
        raise InputError(f"the method is {len(text)} characters long; {MAXIMUM_TEXT} is the limit")
    parts: list[Part] = []
    for term in _split(text, "+"):
        parts += _term(term, text)
    if overrides:
        parts = _override(parts, overrides, text)
    check_parts(parts, text)
    own = text.strip().lower().replace("-", "_")
    return Method(own if own in PRESETS and not overrides else describe(parts), tuple(parts))


def override(method: Method, overrides: Mapping[str, Any]) -> Method:
    """A method with options of the command line's short forms. Raises InputError where no part has one."""
    if not overrides:
        return method
    parts = _override(list(method.parts), overrides, method.name)
    check_parts(parts, method.name)
    return Method(describe(parts), tuple(parts))


def describe(parts: list[Part]) -> str:
    """The shortest text that gives these parts back: a preset's name where they are one, options that differ from it."""
    labels = [part.label for part in parts]
    best, most = "", -1
    for name, text in PRESETS.items():
        if re.findall(r"([a-z0-9_]+)(?:\([^()]*\))?(?:\+|$)", text) != labels:
            continue
        own = expand(name)
        fixed = [(a, f.name) for a, b in zip(own, parts, strict=True) for f in fields(a) if getattr(a, f.name) != f.default]
        plain = len(own) == 1 and not fixed  # another name for a part as it is
        sized = any(not isinstance(getattr(part, option), bool | str) for part, option in fixed)  # a size makes no new method
        same = all(getattr(b, f) == getattr(a, f) for a, b in zip(own, parts, strict=True) for c, f in fixed if c is a)
        if same and not plain and not sized and len(fixed) > most:
            best, most = name, len(fixed)
    if not best or _ambiguous(expand(best), parts):
        given = [_options(part) for part in parts]
        return "+".join(f"{part.label}({o})" if o else part.label for part, o in zip(parts, given, strict=True))
    joined = ",".join(o for a, b in zip(expand(best), parts, strict=True) if (o := _options(b, a)))
    return f"{best}({joined})" if joined else best


def _ambiguous(own: list[Part], parts: list[Part]) -> bool:
    """Whether an option that differs from the preset's belongs to several of its parts, so that a short form cannot say it."""
    changed = [f.name for a, b in zip(own, parts, strict=True) for f in fields(b) if getattr(a, f.name) != getattr(b, f.name)]
    return any(sum(name in {f.name for f in fields(part)} for part in parts) > 1 for name in changed)


def expand(name: str) -> list[Part]:
    """The parts of a preset."""
    return [part for inner in _split(PRESETS[name], "+") for part in _term(inner, name)]


def standing_alone() -> list[str]:
    """Names that are a method as they are: they train something, and need no option."""
    return [name for name in names() if _is_method(name)]


def _is_method(name: str) -> bool:
    try:
        parse(name)
    except InputError:
        return False
    return True


def explicit(method: Method, separator: str = ",") -> str:
    """The method with every option written out, for report headers: no default is silent."""
    texts = []
    for part in method.parts:
        values = {f.name: getattr(part, f.name) for f in options(part)}
        shown = separator.join(f"{name}={_shown(value)}" for name, value in values.items() if value != ())
        texts.append(f"{part.label}({shown})" if shown else part.label)
    return "+".join(texts)


def _split(text: str, separator: str) -> list[str]:
    pieces, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == separator and depth == 0:
            pieces.append(text[start:index])
            start = index + 1
    return [*pieces, text[start:]]


def _term(term: str, whole: str) -> list[Part]:
    match = _TERM.fullmatch(term)
    if match is None:
        raise InputError(f"{whole!r} is not a method; write one like lora, qlora(r=16) or quantized_base+lora(r=8)")
    name = match.group(1).lower().replace("-", "_")
    if name in PRESETS:
        parts = expand(name)
    elif name in PARTS:
        parts = [PARTS[name]()]
    else:
        raise UnknownNameError("method", match.group(1), names(), "plan methods")
    for key, value in _pairs(match.group(2) or "", whole).items():
        parts = _set(parts, key, value, name)
    return parts


def _pairs(text: str, whole: str) -> dict[str, str]:
    """`r=16,target_modules=q_proj,v_proj` -> a dict; an item without `=` belongs to the value before it."""
    pairs: dict[str, str] = {}
    last = ""
    for item in text.split(","):
        key, equals, value = item.partition("=")
        if equals:
            last = key.strip()
            if last in pairs:
                raise InputError(f"{whole!r} gives {last} twice; give it once")
            pairs[last] = value.strip()
        elif last:
            pairs[last] += f",{item.strip()}"
        elif text.strip():
            raise InputError(f"{whole!r}: {item.strip()!r} is not an option; write name=value")
    return pairs


def _set(parts: list[Part], key: str, value: Any, name: str) -> list[Part]:
    owners = [part for part in parts if key in {f.name for f in fields(part)}]
    if not owners:
        known = [f.name for part in parts for f in fields(part)]
        raise UnknownNameError(f"option of {name}", key, known, f"plan methods show {name}")
    return [replace(part, **{key: _convert(part, key, value)}) if part in owners else part for part in parts]


def _convert(part: Part, key: str, value: Any) -> Any:
    """The value in the type of the option's default."""
    default = getattr(part, key)
    if not isinstance(value, str):
        return value
    try:
        if isinstance(default, bool):
            return _TRUE[value.lower()]
        if isinstance(default, tuple):
            items = [item.strip() for item in value.strip("[]").replace("|", ",").split(",")]
            return tuple([int(item) for item in items]) if key in WHOLE_NUMBERS else tuple(items)
        if isinstance(default, int):
            return int(value)
        if isinstance(default, float):
            return float(value)
    except (KeyError, ValueError):
        kind = "true or false" if isinstance(default, bool) else f"a number, such as {default}"
        raise InputError(f"{part.label}: {key}={value!r} is not {kind}") from None
    return value


def _override(parts: list[Part], overrides: Mapping[str, Any], text: str) -> list[Part]:
    for key, value in overrides.items():
        if any(key in {f.name for f in fields(part)} for part in parts):
            parts = _set(parts, key, value, text)
        else:
            raise InputError(f"{text} has no option {key}; it applies to lora, qlora and other low-rank methods")
    return parts


def check_parts(parts: list[Part], text: str) -> None:
    """Raise InputError for a part given twice, parts that clash, and options that make no sense."""
    labels = [part.label for part in parts]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"{text!r} gives {label} twice; a part can act once")
    for part in parts:
        for other in parts:
            why = part.clashes.get(other.label, part.clashes.get("*")) if other is not part else None
            if why is not None:
                raise InputError(f"{part.label} and {other.label} clash: {why}; use one of them")
    if parts and all(part.trains_nothing for part in parts):
        raise InputError(f"{labels[0]} trains nothing by itself; add a part such as lora: {'+'.join(labels)}+lora")
    for part in parts:
        part.check()


def _options(part: Part, other: Part | None = None) -> str:
    """The options that differ from another part's, or from the defaults."""
    changed = [f for f in options(part) if getattr(part, f.name) != (getattr(other, f.name) if other else f.default)]
    return ",".join(f"{f.name}={_shown(getattr(part, f.name))}" for f in changed)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(str(item) for item in value) if isinstance(value, tuple) else str(value)
