"""A user's own PEFT configuration (`adapter_config.json`) as a method; what is not modelled is said.

Keys are those of the configuration classes of peft 0.21. A key that is at its default or without effect on memory and time is
passed over; every other key that no part has becomes a warning.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.methods.compose import check_parts, describe
from tuneplan.planner.methods.method import Method
from tuneplan.planner.methods.part import Part
from tuneplan.planner.methods.registry import PARTS
from tuneplan.planner.methods.targeted import ALL_LINEAR, PATTERN
from tuneplan.planner.models.config import read_config_file, shown_path

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


@dataclass(frozen=True, slots=True)
class Given:
    """A configuration as a method.

    Attributes:
        method: what it maps to.
        warnings: what it asks for that is not modelled.
        base_model: the model it names, or "".
    """

    method: Method
    warnings: tuple[str, ...]
    base_model: str


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
            warnings.append(f"{origin}: init_lora_weights='mica' trains one of the two matrices; figures are of both")
        elif key == "modules_to_save" and value:
            others.append(PARTS["modules_to_save"](modules=_names(key, value, origin)))  # type: ignore[call-arg]
        elif key == "trainable_token_indices" and isinstance(value, list):
            others.append(PARTS["trainable_tokens"](token_indices=tuple(value)))  # type: ignore[call-arg]
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
    parts = [part_type(**options), *others]
    text = "+".join(part.label for part in parts)
    check_parts(parts, text)
    base = config.get("base_model_name_or_path")
    return Given(Method(describe(parts), tuple(parts)), tuple(warnings), base if isinstance(base, str) else "")


def without_effect(kind: str, key: str) -> bool:
    """Whether a key of a `peft_type` changes neither memory nor time."""
    return key in WITHOUT_EFFECT | _WITHOUT_EFFECT_HERE.get(kind, set())


def _value(key: str, value: Any, default: Any, origin: str) -> Any:
    """A value in the form of the part's option."""
    if key == "target_parameters":
        return _names(key, value, origin)
    if key in ("target_modules", "feedforward_modules"):
        return _targets(value, origin)
    if key == "rank_pattern":
        return _ranks(value, origin)
    if key in ("layers_to_transform", "token_indices"):
        layers = value if isinstance(value, list) else [value]
        if not all(isinstance(layer, int) and not isinstance(layer, bool) for layer in layers):
            raise InputError(f"{origin}: {key}={value!r} is no list of whole numbers; correct the file")
        return tuple(layers)
    wanted = (int, float) if isinstance(default, float) and not isinstance(default, bool) else type(default)
    if isinstance(value, wanted) and isinstance(value, bool) == isinstance(default, bool):
        return value
    raise InputError(f"{origin}: {key}={value!r} should be {_kind(default)}; correct the file")


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


def check_base(given: Given, model_type: str, known: str) -> str:
    """A note if the configuration was made for another model than the one it is asked for; "" if not."""
    if not given.base_model or given.base_model == known:
        return ""
    return f"the adapter was made for {given.base_model}, and is planned for {known} ({model_type})"
