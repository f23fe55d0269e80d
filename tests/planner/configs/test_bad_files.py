"""Files that cannot be used: an error with file and line, no value that could be a secret, never a traceback."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from config_examples import CASES, FOLDER
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneplan.planner.configs.read import read_configs
from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.yaml_file import MOST_BYTES

SECRET = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345"
SFT = "model_name_or_path: HuggingFaceTB/SmolLM2-135M\n"
EXAMPLES = sorted({name for case in CASES for name in case.split(",")})


def read(tmp_path: Path, text: str | bytes, name: str = "train.yaml", **options: Any) -> Any:
    """Read a text as a file."""
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_configs([path], **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x\n", "line 1: anchor &x is refused"),
        ("a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n", "anchor &a is refused"),
        (SFT + "max_length: 8\nmax_length: 9\n", "line 3: 'max_length' was given on line 2 already"),
        (SFT + "\tmax_length: 8\n", "line 2: not valid YAML"),
        (SFT + "max_length: two\n", "line 2: max_length: 'two' is no whole number"),
        (SFT + "max_length: ${length}\n", "line 2: max_length: the value is a template"),
        (SFT + "max_length: {{ length }}\n", "line 2: a key must be a word; fill in a template such as {{ x }} first"),
        (SFT + "per_device_train_batch_size: 0\n", "line 2: per_device_train_batch_size: 0 is too small"),
        (SFT + "optim: adamw_torhc\n", "line 2: optim: 'adamw_torhc' is not known. Did you mean adamw_torch"),
        (SFT + "bf16: true\nfp16: true\n", "line 3: fp16: fp16 and bf16 are both true"),
        (SFT + "load_in_4bit: true\n", "line 2 (load_in_4bit): a quantized base cannot be trained itself"),
        (SFT + "use_peft: true\nlora_r: -1\n", "line 3: lora_r: -1 is too small"),
        (SFT + "use_peft: true\nlora_target_modules: [1]\n", "line 3: lora_target_modules"),
        (SFT + "attn_implementation: sdpaa\n", "line 2: attn_implementation: unknown attention"),
        (SFT + "dtype: float8\n", "line 2: dtype: 'float8' is not known"),
        (SFT + "gradient_checkpointing_kwargs: {use_reentrant: maybe}\n", "line 2: gradient_checkpointing_kwargs"),
        (SFT + "---\nmax_length: 9\n", "line 2: not valid YAML: expected a single document in the stream, but found another"),
        ("- a\n- b\n", "line 1: a configuration is a mapping of keys"),
        ("model_name_or_path: nobody/nothing-7b\nmax_length: 8\n", "line 1 (model_name_or_path): the model 'nobody/nothing-7b'"),
        ("model_name_or_path: /no/such/folder\nmax_length: 8\n", "line 1 (model_name_or_path)"),
        ("colour: red\nsize: 3\n", "no tool is recognised by these keys"),
        ("", "is empty"),
        (b"\x7fELF\x02\x01\x01\x00", "not valid YAML"),
        (b"PK\x03\x04\xff\xfe", "is not UTF-8 text"),
        ("base_model: gpt9\nadapter: qlora\n", "line 2: adapter: qlora needs load_in_4bit"),
        ("base_model: 7b\nbf16: maybe\n", "line 2: bf16: the value is none of"),
        ("base_model: 7b\nadapter: loraa\n", "line 2: adapter: 'loraa' is not known. Did you mean"),
        ("finetuning_type: lora\ncutoff_len: 8\nlora_rnak: 8\n", "line 3: lora_rnak: unknown key. Did you mean 'lora_rank'"),
        ("finetuning_type: lorax\ncutoff_len: 8\n", "line 1: finetuning_type: 'lorax' is not known"),
        ("distributed_type: FSDP\nnum_proceses: 8\n", "line 2: num_proceses: unknown key. Did you mean 'num_processes'"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 4}\n", "stage 4 does not exist"),
        ("distributed_type: FSDP\nfsdp_config: {fsdp_sharding_strategy: HALF}\n", "half is no strategy of FSDP"),
        ("model: {_component_: os.system}\nloss: {_component_: x}\n", "the builder 'os.system' is not known"),
        ("model: {_component_: torchtune.models.llama2.lora_llama2_7b}\nbatch_size: 1\n", "lora_attn_modules is missing"),
        ("per_device_train_batch_size: 1\nlearning_rat: 1\n", "line 2: learning_rat: unknown key. Did you mean 'learning_rate'"),
        ("training: {batch_size: x}\nlora: {lora_r: 8}\n", "training.batch_size: 'x' is no whole number"),
        ("training: {bach_size: 1}\nlora: {lora_r: 8}\n", "training.bach_size: unknown key"),
    ],
)  # fmt: skip
def test_what_is_wrong_and_where(tmp_path: Path, text: str | bytes, message: str) -> None:
    """Every refusal names the file, the line where there is one, what was given and what to do."""
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read(tmp_path, text)
    assert "train.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"peft_type": "LORAX"}', "Unknown peft_type 'LORAX'. Did you mean 'LORA'"),
        ('{"peft_type": "LORA", "r": "eight"}', "r='eight' should be a whole number"),
        ('{"zero_optimization": {"stage": 3, "stage3_prefetch": 1}}', "zero_optimization.stage3_prefetch: unknown key"),
        ('{"zero_optimization": {"stage": 7}}', "stage 7 does not exist"),
        ('{"zero_optimization": [1]}', "zero_optimization: a list is no section"),
        ('{"bf16": {"enabled": "perhaps"}, "zero_optimization": {}}', "bf16.enabled: 'perhaps' is neither true nor false"),
        ('{"zero_optimization": {}, "train_batch_size": 7, "train_micro_batch_size_per_gpu": 2}', "7 cannot be split evenly"),
        ('{"zero_optimization": {},}', "a key in double quotes is missing"),
    ],
)
def test_json_files(tmp_path: Path, text: str, message: str) -> None:
    """The same for JSON."""
    with pytest.raises(InputError, match=re.escape(message)):
        read(tmp_path, text, "x.json", model="7b")


def test_huge_files_are_not_read(tmp_path: Path) -> None:
    """A file above the limit is refused by its size."""
    with pytest.raises(InputError, match="larger than 8 MiB"):
        read(tmp_path, b"a: 1\n" + b"#" * (MOST_BYTES + 1))


def test_a_config_of_another_tool_than_named(tmp_path: Path) -> None:
    """Its keys are unknown to the tool that was named: an error at the first line, or a warning where the tool ignores them."""
    with pytest.raises(InputError, match="line 1: base_model: unknown key"):
        read(tmp_path, "base_model: 7b\nsequence_len: 8\n", formats=["llama-factory"])
    with pytest.raises(UnknownNameError, match="Did you mean 'axolotl'"):
        read(tmp_path, "base_model: 7b\n", formats=["axolotol"])


def test_unknown_keys_as_the_tool_takes_them(tmp_path: Path) -> None:
    """TRL's scripts ignore what they do not know; the planner says so, with the key that was meant."""
    found = read(tmp_path, SFT + "max_lenght: 4096\n")
    assert 1024 == found.options["seq_len"]
    assert any("max_lenght" in w and "ignore it" in w and "'max_length'" in w for w in found.warnings)


def test_earlier_names_are_known(tmp_path: Path) -> None:
    """`max_seq_length` and `torch_dtype` of earlier TRL, `evaluation_strategy` of earlier transformers."""
    found = read(tmp_path, SFT + "max_seq_length: 256\ntorch_dtype: bfloat16\nevaluation_strategy: 'no'\nwarmup_ratio: 0.1\n")
    assert (256, "bf16", ()) == (found.options["seq_len"], found.options["dtype"], found.warnings)


@pytest.mark.parametrize("key", ["hub_token", "api_key", "wandb_token", "model_name_or_path", "max_length", "optim", "colour"])
def test_secrets_are_never_echoed(tmp_path: Path, key: str) -> None:
    """A token under any key appears in no message, warning, entry or document."""
    rest = "" if key == "model_name_or_path" else SFT
    shown = ""
    try:
        found = read(tmp_path, f"{rest}{key}: {SECRET}\nmax_steps: 3\n")
        shown = json.dumps(found.to_json()) + repr(found.warnings)
    except InputError as error:
        shown = str(error)
    assert shown
    assert "AbCdEf" not in shown


def test_a_token_as_a_key_is_hidden_too(tmp_path: Path) -> None:
    """A line such as `hf_...: true` is quoted without the token."""
    found = read(tmp_path, f"{SFT}{SECRET}: true\n")
    assert "AbCdEf" not in json.dumps(found.to_json()) + repr(found.warnings)


def test_later_files_override_and_contradictions_are_said(tmp_path: Path) -> None:
    """What two files say differently is a warning that names both places."""
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(SFT + "max_length: 256\n")
    second.write_text(
        "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: {zero_stage: 2, gradient_clipping: 0.5}\n"
    )
    third = tmp_path / "c.json"
    third.write_text('{"zero_optimization": {"stage": 3}, "gradient_clipping": 0.1, "bf16": {"enabled": true}}')
    found = read_configs([first, second, third])
    assert (3, 0.1, 2) == tuple(found.options[name] for name in ("zero_stage", "max_grad_norm", "data_parallel"))
    assert ("bf16", "master-weights") == (found.options["dtype"], found.options["precision"])
    assert any("b.yaml" in w and "c.json" in w and "the later one is taken" in w for w in found.warnings)
    with pytest.raises(InputError, match="given twice"):
        read_configs([first, first])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.sampled_from(EXAMPLES),
    st.integers(0, 60),
    st.sampled_from(["", "null", "true", "-1", "1e400", "[]", "{}", "[1, {a: 2}]", "'x'", "${a}", "9" * 30, SECRET]),
)
def test_any_value_at_any_line_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, line: int, value: str
) -> None:
    """An example with one value replaced ends in a configuration or in an InputError."""
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    place = line % len(lines)
    head, colon, _ = lines[place].partition(":")
    lines[place] = f"{head}{colon} {value}" + ("," if name.endswith(".json") else "")
    path = tmp_path_factory.mktemp("f") / name
    path.write_text("\n".join(lines), encoding="utf-8")
    with suppress(InputError):
        assert read_configs([path], model="7b").options is not None
