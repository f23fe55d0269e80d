"""Random options: whatever is typed, the exit code is 0, 1, 2 or 3, and nothing ends in a traceback."""

import json
import math
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from workload_files import BUY, HEAD, TRAINING
from workload_files import SERVING as SERVE

from tuneplan.planner.cli.main import COMMANDS

FUZZ = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

NAMES = st.sampled_from(
    ["7b", "a100-80g", "lora", "qlora", "full", "adamw", "sdpa", "eager", "flash", "liger", "bf16", "any-card", "t4"]
)
NUMBERS = st.one_of(
    st.integers(-3, 5).map(str),
    st.sampled_from(["8", "64", "512", "2048", "100000", "0.03", "0.5", "1e3", "-0", "nan", "-inf", "10M", "24GiB", "1,2", "+1"]),
    st.integers().map(str),
    st.floats(-1e9, 1e9).map(repr),
)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
METHODS = st.text(st.sampled_from(list("lorafq+(),=r8_ 1")), max_size=24)
VALUES = st.one_of(NAMES, NUMBERS, TEXTS, METHODS)

SEARCH = [
    "--gpu-memory",
    "--method",
    "--rank",
    "--target-modules",
    "--gpus",
    "--seq-len",
    "--attention",
    "--loss",
    "--attention-dropout",
    "--global-batch-size",
    "--micro-batch-size",
    "--tokens",
    "--samples",
    "--dtype",
    "--precision",
    "--optimizer",
    "--zero-stage",
    "--objective",
    "--max-hours",
    "--max-usd",
    "--safety-margin",
    "--model",
    "--gpu",
]
ESTIMATE = [
    "--gpu-memory",
    "--method",
    "--rank",
    "--target-modules",
    "--seq-len",
    "--attention",
    "--loss",
    "--attention-dropout",
    "--micro-batch-size",
    "--gradient-accumulation-steps",
    "--dtype",
    "--precision",
    "--optimizer",
    "--zero-stage",
    "--data-parallel",
    "--safety-margin",
    "--model",
    "--gpu",
]
FLAGS = st.lists(st.sampled_from(["--padded", "--json", "--gradient-checkpointing", "--no-gradient-checkpointing"]), max_size=2)


def pairs(options: list[str], values: st.SearchStrategy[str] = VALUES) -> st.SearchStrategy[list[str]]:
    """A few options with values, as a flat list."""
    pair = st.tuples(st.sampled_from(options), values)
    return st.lists(pair, min_size=1, max_size=3).map(lambda found: [word for item in found for word in item])


def check(outcome: Any, as_json: bool) -> None:
    """Exit code, streams, and that an answer is made of finite numbers that are not negative."""
    assert outcome.code in (0, 1, 2, 3)
    assert "Traceback" not in outcome.err
    if outcome.code >= 2:
        assert ("", 1) == (outcome.out, outcome.err.count("\n"))
        return
    assert "" == outcome.err
    assert outcome.out
    if as_json:
        finite(json.loads(outcome.out), "")


def finite(value: Any, where: str) -> None:
    """Every number of a document is finite and, but for what a switch saves, not negative."""
    if isinstance(value, dict):
        for key, inner in value.items():
            finite(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for inner in value:
            finite(inner, where)
    elif isinstance(value, float | int):
        assert math.isfinite(value), where
        assert value >= 0 or where.startswith(".savings."), where


@FUZZ
@given(words=pairs(SEARCH), flags=FLAGS)
def test_search(plan: Any, words: list[str], flags: list[str]) -> None:
    """Random values for random options of the search."""
    arguments = ["--model", "7b", "--gpu", "a100-80g", "--method", "lora", "--global-batch-size", "4", *words, *flags]
    check(plan(*arguments), "--json" in flags)


@FUZZ
@given(words=pairs(ESTIMATE), flags=FLAGS)
def test_estimate(plan: Any, words: list[str], flags: list[str]) -> None:
    """Random values for random options of an estimate."""
    check(plan("estimate", "--model", "7b", *words, *flags), "--json" in flags)


@FUZZ
@given(words=pairs([option for option in ESTIMATE if option not in ("--model", "--gpu")], NUMBERS))
def test_estimate_of_numbers(plan: Any, words: list[str]) -> None:
    """Mostly well-formed numbers, so that more of them get through to an answer."""
    check(plan("estimate", "--model", "7b", "--gpu", "a100-80g", "--json", *words), True)


@FUZZ
@given(text=METHODS)
def test_methods(plan: Any, text: str) -> None:
    """Random compositions of the letters that methods are written in."""
    check(plan("methods", "show", "--", text), False)


@FUZZ
@given(words=st.lists(st.one_of(st.sampled_from([*COMMANDS, "show", "--json", "7b", "a100-80g"]), TEXTS), max_size=4))
def test_words(plan: Any, words: list[str]) -> None:
    """Random words in random order."""
    outcome = plan(*words)
    if "-h" not in words and "--help" not in words:
        check(outcome, False)


CONFIG_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-2, 300),
    st.sampled_from([64, 128, 4, 2, 10**30, 2**24, 1]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="ascii"), max_size=8),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(st.characters(codec="ascii"), max_size=3), st.integers(), max_size=2),
)
CONFIG_KEYS = [
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "head_dim",
    "max_position_embeddings",
    "tie_word_embeddings",
    "attention_dropout",
    "attention_bias",
    "mlp_bias",
    "sliding_window",
]
BASE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


@FUZZ
@given(
    changes=st.dictionaries(st.sampled_from(CONFIG_KEYS), CONFIG_VALUES, min_size=1, max_size=3),
    family=st.sampled_from(["llama", "mistral", "qwen2", "qwen3", "granite"]),
)
def test_configs(plan: Any, tmp_path_factory: Any, changes: dict[str, Any], family: str) -> None:
    """Random values in a config.json: refused in a line, or an answer of finite numbers that are not negative."""
    path = tmp_path_factory.mktemp("fuzz") / "config.json"
    path.write_text(json.dumps({**BASE, "model_type": family, **changes}))
    check(plan("estimate", "--model", str(path), "--method", "qlora", "--json", "--seq-len", "64"), True)


@FUZZ
@given(content=st.binary(max_size=60))
def test_config_bytes(plan: Any, tmp_path_factory: Any, content: bytes) -> None:
    """Random bytes for a config.json are refused."""
    path = tmp_path_factory.mktemp("fuzz") / "config.json"
    path.write_bytes(content)
    assert 2 == plan("estimate", "--model", str(path)).code


@FUZZ
@given(content=st.one_of(st.binary(max_size=80), st.text(st.sampled_from(list("abc,=\"'[]\n1.0")), max_size=80).map(str.encode)))
def test_price_and_card_files(plan: Any, tmp_path_factory: Any, content: bytes) -> None:
    """Random bytes for the user's own data files are a broken data file, exit code 3."""
    path = tmp_path_factory.mktemp("fuzz") / "file"
    path.write_bytes(content)
    for option in ("--prices", "--gpu-file"):
        assert 3 == plan("--model", "7b", "--gpu", "a100-80g", option, str(path)).code


SERVING = ["--model", "--gpu", "--gpu-memory", "--weights", "--weights-size", "--kv-dtype", "--prompt-tokens", "--output-tokens"]
SERVING += ["--tensor-parallel", "--utilisation", "--max-num-seqs", "--max-batched-tokens", "--block-size", "--kv-alignment"]
SERVING += ["--adapter", "--adapters", "--host-memory", "--against", "--full-copies", "--emulator-layers"]


@FUZZ
@given(pairs(SERVING), st.lists(st.sampled_from(["--json", "--merged", "--no-cuda-graphs", "--spot"]), max_size=2))
def test_serving(plan: Any, options: list[str], flags: list[str]) -> None:
    """`plan serve-memory` with anything behind its options."""
    outcome = plan("serve-memory", "--model", "qwen2.5-0.5b", "--gpu", "a10", *options, *flags)
    assert outcome.code in (0, 1, 2)
    assert (outcome.out == "") == (outcome.code == 2)


VALUES_OF_A_FILE = st.one_of(
    st.sampled_from(
        ["1/s", "5 hours", "10M", "7b", "lora", "80%", "~", "[]", "{}", "-1", "1e400", "nan", "0/s", "1/year", "9" * 50]
    ),
    st.integers().map(str),
    st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), max_size=12),
)


@FUZZ
@given(st.integers(0, 29), VALUES_OF_A_FILE)
def test_capacity(plan: Any, tmp_path_factory: Any, line: int, value: str) -> None:
    """A workloads file with anything as one of its values."""
    lines = (HEAD + BUY + TRAINING + SERVE).splitlines()
    key = lines[line].partition(":")[0]
    lines[line] = f"{key}: {value}"
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text("\n".join(lines))
    outcome = plan("capacity", str(path), "--horizon", "2 months")
    assert outcome.code in (0, 1, 2)
    assert (outcome.out == "") == (outcome.code == 2)


@settings(FUZZ, max_examples=25)
@given(words=pairs([o for o in SEARCH if o not in ("--method", "--gpu", "--model")]), methods=METHODS, flags=FLAGS)
def test_compare(plan: Any, words: list[str], methods: str, flags: list[str]) -> None:
    """Random methods and options of a comparison."""
    arguments = ["--model", "7b", "--gpu", "a100-80g", "--global-batch-size", "4", "--methods", methods, *words, *flags]
    check(plan("compare", *arguments), "--json" in flags)
