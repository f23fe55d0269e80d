"""A user's own PEFT configuration (`adapter_config.json`) as a method; what is not modelled is said.

Keys are those of the configuration classes of peft 0.21. A key that is at its default or without effect on memory and time is
passed over; every other key that no part has becomes a warning.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.methods.compose import check_parts, describe
from tuneplan.planner.methods.method import Method
from tuneplan.planner.methods.part import Part
from tuneplan.planner.methods.peft_said import said
from tuneplan.planner.methods.registry import PARTS
from tuneplan.planner.methods.targeted import ALL_LINEAR, PATTERN
from tuneplan.planner.models.config import read_config_file, shown_path

if TYPE_CHECKING:
    from tuneplan.planner.models.spec import ModelSpec

NAME = "adapter_config.json"
LABELS = {
    "LORA": "lora",
    "ADALORA": "adalora",
    "IA3": "ia3",
    "LOHA": "loha",
    "LOKR": "lokr",
    "VERA": "vera",
    "OFT": "oft",
    "BOFT": "boft",
    "FOURIERFT": "fourierft",
    "MISS": "miss",
    "SHIRA": "shira",
    "LN_TUNING": "ln_tuning",
    "PROMPT_TUNING": "prompt_tuning",
    "P_TUNING": "p_tuning",
    "PREFIX_TUNING": "prefix_tuning",
    "ADAPTION_PROMPT": "adaption_prompt",
    "TRAINABLE_TOKENS": "trainable_tokens",
}
"""The part of each `peft_type` that has one."""

WITHOUT_EFFECT = {
    "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode",
    "fan_in_fan_out", "init_lora_weights", "init_weights", "init_ia3_weights", "layers_pattern", "alpha_pattern", "random_seed",
    "random_loc_seed", "projection_prng_key", "d_initial", "megatron_core", "corda_config", "eva_config", "loftq_config",
    "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step", "num_transformer_submodules",
    "num_attention_heads", "num_layers", "token_dim", "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_kwargs",
    "tokenizer_name_or_path", "encoder_dropout", "encoder_num_layers", "mini_r", "mask_type", "scaling", "eps",
    "qalora_group_size",
    "boft_n_butterfly_factor", "ensure_weight_tying", "arrow_config", "lora_ga_config", "sparsity", "lora_alpha", "alpha",
}  # fmt: skip
"""Keys that change neither memory nor time (initial values, scalings), or that PEFT fills in from the model."""

_WITHOUT_EFFECT_HERE = {"ADALORA": {"r"}, "ADAPTION_PROMPT": {"target_modules"}, "OFT": {"use_cayley_neumann"}}
_OTHERWISE: dict[str, dict[str, Any]] = {"OFT": {"oft_block_size": 0}, "BOFT": {"boft_block_size": 0}}
"""Options whose default gives way when the number of blocks is given instead of their size."""
LONGEST_SHOWN = 60
DIMENSIONS = {"num_layers": "num_hidden_layers", "token_dim": "hidden_size"}
"""Keys that PEFT fills in from the model (prompts and prefixes), and what they are of it."""
TARGETS = "target_modules"
TRAINS_RANKNUM = (0, 21)
"""The release of PEFT whose AdaLoRA trains `ranknum`, which its tuners_utils.py moves to the model's device and dtype; 0.19.1 and
0.20.0 leave it frozen."""
PEFT_TARGETS = ("q_proj", "v_proj")
"""What LoRA and its kin adapt of most decoders if the file does not say (peft 0.21 utils/constants.py)."""


@dataclass(frozen=True, slots=True)
class Given:
    """A configuration as a method.

    Attributes:
        method: what it maps to.
        warnings: what it asks for that is not modelled.
        base_model: the model it names, or "".
        dimensions: of the model it was made for, as PEFT filled them in, by key.
    """

    method: Method
    warnings: tuple[str, ...]
    base_model: str
    dimensions: tuple[tuple[str, int], ...] = ()


def read_peft_config(path: str | os.PathLike[str]) -> Given:
    """The method of an adapter_config.json, or of a folder with one.

    Raises:
        InputError: the file cannot be read, has no `peft_type`, or a value of the wrong type.
        UnknownNameError: a `peft_type` that no part mirrors.
    """
    return from_mapping(read_config_file(path, NAME), shown_path(path))


def from_mapping(config: Mapping[str, Any], origin: str) -> Given:
    """The method of a configuration's contents; see `read_peft_config`."""
    kind = config.get("peft_type")
    if not isinstance(kind, str):
        raise InputError(f"{origin}: the key 'peft_type' is missing; give the {NAME} that peft's save_pretrained writes")
    if kind not in LABELS:
        raise UnknownNameError("peft_type", kind, list(LABELS), f"{origin}; plan trace --peft-config runs any that peft knows")
    part_type = PARTS[LABELS[kind]]
    own = {f.name: f.default for f in fields(part_type)}
    options: dict[str, Any] = dict(_OTHERWISE.get(kind, {})) if config.get("r") or config.get("boft_block_num") else {}
    warnings: list[str] = []
    others: list[Part] = []
    for key, value in config.items():
        if value is None:
            continue
        if key in own:
            options[key] = _value(key, value, own[key], origin)
        elif key == "init_lora_weights" and value == "mica":
            options["freeze_b"] = True
        elif (sentence := said(kind, key, value, config)) is not None:
            warnings += [f"{origin}: {key}={_short(value)} {sentence}"] if sentence else []
        elif key == "modules_to_save" and value:
            saved = PARTS["modules_to_save"]
            others.append(saved(modules=_names(key, value, origin)))  # type: ignore[call-arg]  # PARTS is of bare parts
        elif key == "trainable_token_indices" and value:
            rows = PARTS["trainable_tokens"]
            others.append(rows(token_indices=_tokens(key, value, origin)))  # type: ignore[call-arg]  # PARTS is of bare parts
        elif not without_effect(kind, key) and value not in (
            False,
            0,
            0.0,
            "",
            "none",
            [],
            {},
        ):
            warnings.append(f"{origin}: {key}={_short(value)} is not modelled; figures are without it")
    if kind == "ADALORA" and _release(config.get("peft_version")) < TRAINS_RANKNUM:
        options["trains_ranknum"] = False
    if TARGETS in own and TARGETS not in options and own[TARGETS] == (ALL_LINEAR,):
        options[TARGETS] = PEFT_TARGETS
        chosen = " and ".join(PEFT_TARGETS)
        warnings.append(f"{origin}: target_modules is not given, and PEFT chooses by the model's type; figures are of {chosen}")
    parts = [part_type(**options), *others]
    text = "+".join(part.label for part in parts)
    check_parts(parts, text)
    base = config.get("base_model_name_or_path")
    filled = tuple([(key, config[key]) for key in DIMENSIONS if isinstance(config.get(key), int)])
    return Given(Method(describe(parts), tuple(parts)), tuple(warnings), base if isinstance(base, str) else "", filled)


def _release(version: Any) -> tuple[int, ...]:
    """The first two numbers of a version; TRAINS_RANKNUM where there are none."""
    found = re.match(r"(\d+)\.(\d+)", version) if isinstance(version, str) else None
    return tuple([int(number) for number in found.groups()]) if found else TRAINS_RANKNUM


def without_effect(kind: str, key: str) -> bool:
    """Whether a key of a `peft_type` changes neither memory nor time."""
    return key in WITHOUT_EFFECT | _WITHOUT_EFFECT_HERE.get(kind, set())


def _value(key: str, value: Any, default: Any, origin: str) -> Any:
    """A value in the form of the part's option."""
    if key == "target_parameters":
        return _names(key, value, origin)
    if key in (TARGETS, "feedforward_modules", "exclude_modules"):
        return _targets(value, origin)
    if key == "rank_pattern":
        return _ranks(value, origin)
    if key in ("layers_to_transform", "token_indices"):
        return _numbers(key, value, origin)
    wanted = (int, float) if isinstance(default, float) and not isinstance(default, bool) else type(default)
    if isinstance(value, wanted) and isinstance(value, bool) == isinstance(default, bool):
        return value
    raise InputError(f"{origin}: {key}={value!r} should be {_kind(default)}; correct the file")


def _numbers(key: str, value: Any, origin: str) -> tuple[int, ...]:
    given = value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in given):
        raise InputError(f"{origin}: {key}={value!r} is no list of whole numbers; correct the file")
    return tuple(given)


def _tokens(key: str, value: Any, origin: str) -> tuple[int, ...]:
    """Token indices as a list, or by the name of the embedding they belong to."""
    if isinstance(value, dict):
        if len(value) != 1:
            raise InputError(f"{origin}: {key} names {', '.join(map(str, value))}; one embedding is modelled, name that alone")
        value = next(iter(value.values()))
    return _numbers(key, value, origin)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def _kind(default: Any) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(type(default), "a list of names")


def _names(key: str, value: Any, origin: str) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(sorted(value))
    raise InputError(f"{origin}: {key}={value!r} is no list of module names; correct the file")


def _targets(value: Any, origin: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value if value == ALL_LINEAR else PATTERN + value,)
    return _names("target_modules", value, origin)


def _ranks(value: Any, origin: str) -> tuple[str, ...]:
    if isinstance(value, dict) and all(isinstance(rank, int) for rank in value.values()):
        return tuple([f"{name}:{rank}" for name, rank in value.items()])
    raise InputError(f"{origin}: rank_pattern={value!r} should give a rank for each name; correct the file")


def check_dimensions(given: Given, spec: "ModelSpec") -> None:
    """Raise InputError where what PEFT filled in from a model does not fit this one."""
    for key, value in given.dimensions:
        own = getattr(spec, DIMENSIONS[key])
        grouped = key == "token_dim" and value == spec.num_key_value_heads * spec.head_dim  # what PEFT writes for a prefix
        if value != own and not grouped:
            raise InputError(
                f"the adapter's configuration has {key}={value}, but {spec.id} has {own}: it was made for another model; "
                f"name that, or take {key} out of the file"
            )


def check_base(given: Given, model_type: str, known: str) -> str:
    """A note if the configuration was made for another model than the one it is asked for; "" if not."""
    if not given.base_model or given.base_model == known:
        return ""
    return f"the adapter was made for {given.base_model}, and is planned for {known} ({model_type})"
