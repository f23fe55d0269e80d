"""A config.json that cannot be used: one clear line on stderr, exit code 2, never an answer computed from nonsense."""

import os
from pathlib import Path
from typing import Any

import pytest
from refusals import refuse

LONG = "x" * 100_000

CONFIGS: dict[str, tuple[Any, str]] = {
    "broken": (b"{'hidden_size': 64}", "is not valid JSON"),
    "truncated": (b'{"model_type": "llama", "hidden', "is not valid JSON"),
    "not json": (b"hello", "is not valid JSON"),
    "empty": (b"", "is empty"),
    "huge": (b'{"a": "' + b"x" * 2**20 + b'"}', "is larger than 1 MiB"),
    "a list": (b"[]", "holds a list"),
    "nested": (b"[" * 200_000, "nested too deeply"),
    "binary": (b"\xff\xfe\x00", "is not UTF-8"),
    "nan": (b'{"hidden_size": NaN}', "holds NaN"),
    "absurd": ({"hidden_size": 10**30}, "'hidden_size' is 1000"),
    "absurd layers": ({"num_hidden_layers": 10**6}, "'num_hidden_layers' is 1000000"),
    "endless digits": (b'{"hidden_size": ' + b"9" * 5000 + b"}", "too long"),
    "negative": ({"hidden_size": -64}, "'hidden_size' is -64"),
    "zero": ({"num_hidden_layers": 0}, "'num_hidden_layers' is 0"),
    "no key/value heads": ({"num_key_value_heads": 0}, "'num_key_value_heads' is 0"),
    "text for a number": ({"hidden_size": "64"}, "must be an integer"),
    "float for an integer": ({"vocab_size": 100.5}, "must be an integer"),
    "boolean for an integer": ({"hidden_size": True}, "must be an integer"),
    "list for an integer": ({"hidden_size": [64]}, "must be an integer"),
    "text for a boolean": ({"tie_word_embeddings": "yes"}, "must be true or false"),
    "missing": ({"vocab_size": None}, "'vocab_size' is missing"),
    "no model_type": ({"model_type": None}, "'model_type' is missing"),
    "number for model_type": ({"model_type": 5}, "must be a string"),
    "unknown model_type": ({"model_type": "quux"}, "'quux'"),
    "control codes": ({"model_type": "a\nb\x1b[31m"}, "model_type"),
    "heads and groups": ({"num_attention_heads": 4, "num_key_value_heads": 3}, "not a multiple of num_key_value_heads=3"),
    "heads and width": ({"num_attention_heads": 3, "num_key_value_heads": 3}, "not a multiple of num_attention_heads=3"),
    "odd head": ({"head_dim": 15}, "head_dim=15 is odd"),
    "quantized": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized already"),
    "dropout": ({"attention_dropout": -0.5}, "'attention_dropout' is -0.5"),
}


@pytest.mark.parametrize("case", list(CONFIGS))
def test_unusable_configs(plan: Any, write_config: Any, case: str) -> None:
    """A config.json that cannot be used is named with the reason; both commands refuse it alike."""
    content, reason = CONFIGS[case]
    path = write_config(content) if isinstance(content, bytes) else write_config(**content)
    for arguments in (("--model", path, "--gpu", "a100-80g"), ("estimate", "--model", path)):
        outcome = plan(*arguments)
        refuse(outcome, path, reason)
        assert "\x1b" not in outcome.err
        assert len(outcome.err) < 1000


def test_unknown_activation_is_refused(plan: Any, write_config: Any) -> None:
    """An activation function that the ledger does not know is not silently counted as another."""
    refuse(plan("estimate", "--model", write_config(hidden_act="nonsense")), "hidden_act", "nonsense")


def test_a_long_model_type_is_cut(plan: Any, write_config: Any) -> None:
    """An endless model_type does not fill the screen."""
    assert len(plan("estimate", "--model", write_config(model_type=LONG)).err) < 1000


def test_a_folder_without_config(plan: Any, tmp_path: Path) -> None:
    """A folder that holds no config.json says so."""
    refuse(plan("--model", str(tmp_path), "--gpu", "a100-80g"), "has no config.json")


@pytest.mark.parametrize("path", ["./absent.json", "/absent/config.json", "absent.json"])
def test_an_absent_file(plan: Any, path: str) -> None:
    """A path that is not there says so."""
    refuse(plan("--model", path, "--gpu", "a100-80g"), "does not exist")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_file(plan: Any, write_config: Any) -> None:
    """A file without permission to read gives the system's reason."""
    path = write_config()
    os.chmod(path, 0)
    refuse(plan("--model", path, "--gpu", "a100-80g"), "Permission denied")
