"""An adapter as a file describes it, before the model is known: PEFT's default modules depend on the model's type."""

import re
from dataclasses import dataclass, field, replace
from typing import Any

from tuneplan.planner.configs.section import Section
from tuneplan.planner.configs.table import known_keys
from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.compose import check_parts, describe
from tuneplan.planner.methods.method import Method
from tuneplan.planner.methods.part import Part
from tuneplan.planner.methods.registry import PARTS
from tuneplan.planner.methods.targeted import PATTERN

_PATTERN = re.compile(r"[\\*+?()\[\]|^$]")


@dataclass(frozen=True, slots=True)
class Adapter:
    """Parts that train something beside a frozen base.

    Attributes:
        label: of the part in the registry.
        options: of the part, None for its default.
        targets: names of modules, None for PEFT's choice for the model's type.
        modules_to_save: names of modules that are trained whole.
        others: further parts, complete.
        given: a part that is complete itself, as from an adapter_config.json; `options` are not looked at then.
    """

    label: str
    options: dict[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] = ()
    others: tuple[Part, ...] = ()
    given: Part | None = None


def note_adapter(section: Section, adapter: Adapter, key: str) -> None:
    """The fact "adapter"."""
    section.facts.set("adapter", adapter, section.source(key))


def default_targets(model_type: str) -> tuple[str, ...]:
    """The modules that PEFT adapts where none are named. Raises InputError for a type that it has none for."""
    mapping: dict[str, Any] = known_keys("peft")["lora_target_modules"]
    if model_type not in mapping:
        raise InputError(
            f"no target modules are given, and PEFT has no default for model type {model_type[:40]!r}; "
            "name them in the file, or give --target-modules all-linear"
        )
    found = mapping[model_type]
    return (PATTERN + found,) if isinstance(found, str) else tuple(found)


def read_targets(section: Section, key: str) -> tuple[str, ...] | None:
    """Modules of a key as a part's option has them: a list of names, or one text that PEFT takes as a pattern."""
    given = section.raw(key)
    if isinstance(given, str) and _PATTERN.search(given):
        return (PATTERN + str(section.text(key)),)
    names = section.names(key)
    return None if names is None else tuple(sorted(names))


def to_method(adapter: Adapter | None, quantized: dict[str, Any] | None, model_type: str, narrow: bool) -> Method:
    """The method of an adapter on a base.

    Args:
        adapter: or None for training the base itself.
        quantized: options of the part quantized_base, or None for a dense base.
        model_type: of the model.
        narrow: adapters are kept in the model's dtype (an engine casts the whole model).

    Raises:
        InputError: parts that clash, values that make no sense.
    """
    parts: list[Part] = []
    if quantized is not None:
        parts.append(PARTS["quantized_base"](**quantized))
    if adapter is None:
        parts.append(PARTS["full"]())
    else:
        parts += _parts(adapter, model_type, narrow)
    check_parts(parts, "+".join(part.label for part in parts))
    return Method(describe(parts), tuple(parts))


def _parts(adapter: Adapter, model_type: str, narrow: bool) -> list[Part]:
    part = adapter.given
    if part is None:
        options = {name: _whole(value) for name, value in adapter.options.items() if value is not None}
        part = PARTS[adapter.label](**options)
    changes: dict[str, Any] = {}
    if hasattr(part, "target_modules") and adapter.label != "oft_all":
        if adapter.targets is not None:
            changes["target_modules"] = adapter.targets
        elif adapter.given is None or adapter.label in ("lora", "adalora", "loha", "lokr", "vera", "miss"):
            changes["target_modules"] = default_targets(model_type)
    if narrow and hasattr(part, "autocast_adapter_dtype"):
        changes["autocast_adapter_dtype"] = False
    parts: list[Part] = [replace(part, **changes)]
    if adapter.modules_to_save:
        saved = PARTS["modules_to_save"]
        parts.append(saved(modules=tuple(sorted(adapter.modules_to_save))))  # type: ignore[call-arg]  # PARTS is of bare parts
    return [*parts, *adapter.others]


def _whole(value: Any) -> Any:
    """A number such as 32.0 as PEFT's configurations write it."""
    return int(value) if isinstance(value, float) and value.is_integer() and value >= 1 else value
