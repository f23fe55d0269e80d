"""PEFT's configurations as methods: every key is used, has no effect, or is said."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.methods.peft_config import LABELS, check_dimensions, from_mapping, read_peft_config, without_effect
from tuneplan.planner.methods.peft_said import said
from tuneplan.planner.methods.registry import PARTS
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.registry import read_spec

SAVED: dict[str, Any] = {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": None,
    "base_model_name_or_path": "meta-llama/Llama-2-7b-hf", "bias": "none", "corda_config": None, "ensure_weight_tying": False,
    "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
    "layer_replication": None, "layers_pattern": None, "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 32,
    "lora_bias": False, "lora_dropout": 0.05, "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None,
    "peft_type": "LORA", "peft_version": "0.18.1", "qalora_group_size": 16, "r": 16, "rank_pattern": {}, "revision": None,
    "target_modules": ["v_proj", "q_proj"], "target_parameters": None, "task_type": "CAUSAL_LM",
    "trainable_token_indices": None, "use_dora": False, "use_qalora": False, "use_rslora": False,
}  # fmt: skip
"""What peft 0.18 saves for a plain LoRA."""


def given(**changes: Any) -> tuple[str, tuple[str, ...]]:
    """The method and the warnings of a saved LoRA with changes."""
    found = from_mapping({**SAVED, **changes}, "a.json")
    return found.method.name, found.warnings


def test_a_plain_configuration_says_nothing() -> None:
    """What `save_pretrained` writes maps to LoRA without a word."""
    assert ("lora(r=16,lora_alpha=32.0,lora_dropout=0.05,target_modules=q_proj,v_proj)".replace("32.0", "32"), ()) == given()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"use_dora": True}, "dora"),
        ({"use_rslora": True}, "rslora"),
        ({"lora_bias": True}, "lora_bias=true"),
        ({"target_modules": "all-linear"}, "lora(r=16,lora_alpha=32,lora_dropout=0.05)"),
        ({"target_modules": r".*\.(q|v)_proj"}, "re:"),
        ({"exclude_modules": ["v_proj"]}, "exclude_modules=v_proj"),
        ({"exclude_modules": r".*layers\.0\..*"}, "exclude_modules=re:"),
        ({"layers_to_transform": 3, "layers_pattern": "layers"}, "layers_to_transform=3"),
        ({"layers_to_transform": [0, 1]}, "layers_to_transform=0,1"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern=q_proj:4"),
        ({"modules_to_save": ["lm_head", "embed_tokens"]}, "modules_to_save(modules=embed_tokens,lm_head)"),
        ({"trainable_token_indices": [1, 2]}, "trainable_tokens(token_indices=1,2)"),
        ({"trainable_token_indices": {"embed_tokens": [1, 2]}}, "trainable_tokens(token_indices=1,2)"),
        ({"bias": "lora_only"}, "bias=lora_only"),
        ({"fan_in_fan_out": True, "alpha_pattern": {"q_proj": 8}}, "lora(r=16"),
    ],
)
def test_keys_that_are_used(changes: dict[str, Any], expected: str) -> None:
    """Each is in the method, and nothing is said."""
    name, warnings = given(**changes)
    assert expected in name
    assert () == warnings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"init_lora_weights": "eva"}, "a pass over data"),
        ({"init_lora_weights": "pissa_niter_16"}, "an SVD"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "quantized and restored"),
        ({"init_lora_weights": "corda", "corda_config": {"corda_method": "ipm"}}, "SVDs"),
        ({"init_lora_weights": "something_new"}, "no initialization that is known"),
        ({"eva_config": {"rho": 2.0}}, "does not use it"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"layers_pattern": "h"}, "taken to be the list"),
        ({"use_qalora": True}, "use_qalora"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"ensure_weight_tying": True}, "counts? once each"),
        ({"target_modules": None}, "target_modules is not given"),
        ({"a_key_of_the_future": 3}, "a_key_of_the_future=3 is not modelled"),
    ],
)
def test_keys_that_are_said(changes: dict[str, Any], words: str) -> None:
    """What the figures are without is a warning that names the key."""
    _, warnings = given(**changes)
    assert len(warnings) == 1, warnings
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(warnings[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "NOTHING"}, "peft_type"),
        ({"peft_type": "XLORA"}, "plan trace --peft-config"),
        ({"peft_type": None}, "'peft_type' is missing"),
        ({"r": "16"}, "should be a whole number"),
        ({"r": 0}, "not a rank"),
        ({"lora_dropout": 1.5}, "probability"),
        ({"target_modules": [1]}, "no list of module names"),
        ({"target_modules": "(q_proj"}, "regular expression"),
        ({"rank_pattern": {"(": 4}}, "rank_pattern"),
        ({"layers_to_transform": ["a"]}, "whole numbers"),
        ({"trainable_token_indices": {"embed_tokens": [1], "lm_head": [2]}}, "one embedding"),
        ({"trainable_token_indices": "a"}, "whole numbers"),
        ({"use_dora": True, "lora_bias": True}, "do not go together"),
    ],
)
def test_configurations_that_make_no_sense(changes: dict[str, Any], words: str) -> None:
    """A wrong value is an error that names the key."""
    with pytest.raises((InputError, UnknownNameError), match=words):
        given(**changes)


def test_every_key_of_every_modelled_type_is_accounted_for() -> None:
    """Given a value that no default has, a key changes the method, is known to have no effect, or is said."""
    peft = pytest.importorskip("peft")
    kinds = {kind.value: made for kind, made in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items() if kind.value in LABELS}
    assert set(kinds) == set(LABELS)
    for kind, made in kinds.items():
        own = {f.name for f in dataclasses.fields(PARTS[LABELS[kind]])}  # type: ignore[arg-type]
        for key in sorted({f.name for f in dataclasses.fields(made)} - own):
            if without_effect(kind, key) or key in ("modules_to_save", "trainable_token_indices"):
                continue
            value: Any = "strange"
            if said(kind, key, value, {}) == "":
                continue
            found = from_mapping({"peft_type": kind, "target_modules": ["q_proj"], key: value}, "a.json")
            assert any(key in warning for warning in found.warnings), (kind, key)


@pytest.mark.parametrize("label", sorted({*LABELS.values()}))
def test_a_parts_own_configuration_gives_it_back(label: str) -> None:
    """What a part says to PEFT maps to the same part, without warnings."""
    part = PARTS[label]()
    config = part.peft_config()
    assert config is not None
    found = from_mapping(config, "a.json")
    assert () == found.warnings
    (same,) = found.method.parts
    assert {f.name: _plain(getattr(part, f.name)) for f in dataclasses.fields(part)} == {
        f.name: _plain(getattr(same, f.name)) for f in dataclasses.fields(same)
    }


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(("key", "value"), [("num_layers", 32), ("token_dim", 4096)])
def test_a_prefix_for_another_model(key: str, value: int) -> None:
    """What PEFT filled in from one model does not fit another."""
    spec = read_spec(*load("Qwen/Qwen2.5-0.5B"))
    found = from_mapping({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 20, key: value}, "a.json")
    with pytest.raises(InputError, match=f"{key}={value}"):
        check_dimensions(found, spec)
    check_dimensions(from_mapping({"peft_type": "PREFIX_TUNING", "num_layers": spec.num_hidden_layers}, "a.json"), spec)


@pytest.mark.parametrize(
    ("version", "trained"), [("0.19.2.dev0@UNKNOWN", False), ("0.20.0", False), ("0.21.2", True), ("1.0", True), ("", True)]
)
def test_adalora_of_an_older_peft(version: str, trained: bool) -> None:
    """Before 0.21 the number that the product is divided by has no gradient."""
    (part,) = from_mapping({"peft_type": "ADALORA", "peft_version": version}, "a.json").method.parts
    assert trained == getattr(part, "trains_ranknum")  # noqa: B009


def test_a_folder_is_read(tmp_path: Path) -> None:
    """The folder that `save_pretrained` made."""
    (tmp_path / "adapter_config.json").write_text(json.dumps(SAVED), encoding="utf-8")
    found = read_peft_config(tmp_path)
    assert "meta-llama/Llama-2-7b-hf" == found.base_model
    assert parse(found.method.name).parts == found.method.parts
