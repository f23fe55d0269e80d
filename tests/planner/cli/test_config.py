"""`--config`: files beside what is typed, in every command that takes a step's options."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml")

EXAMPLES = Path(__file__).parents[2] / "golden" / "configs"
SFT = str(EXAMPLES / "trl_sft_lora.yaml")


def test_the_estimate_of_a_file(plan: Any) -> None:
    """Model, method, batch and length are the file's; the account of keys is in the document."""
    outcome = plan("estimate", "--config", SFT, "--json")
    assert outcome.code == 0
    body = outcome.json()
    request = body["request"]
    assert ("HuggingFaceTB/SmolLM2-135M", 1024, 2, 4) == tuple(
        request[name] for name in ("model", "seq_len", "micro_batch_size", "gradient_accumulation_steps")
    )
    assert ("bf16", "autocast", "adamw_fused") == (request["dtype"], request["precision"], request["optimizer"])
    config = body["config"]
    assert [{"file": SFT, "format": "trl-sft"}] == config["files"]
    assert {"lora_r", "max_length"} <= {entry["key"] for entry in config["used"]}
    assert {"learning_rate", "report_to"} <= {entry["key"] for entry in config["irrelevant"]}
    assert [] == config["not_modelled"]
    assert "line 5 (use_peft)" in config["sources"]["method"]


def test_what_is_typed_wins_and_is_said(plan: Any) -> None:
    """An option of the command line overrides the file's; header and document say so."""
    outcome = plan("estimate", "--config", SFT, "--seq-len", "256", "--rank", "4", "--no-gradient-checkpointing", "--json")
    body = outcome.json()
    assert (256, "off") == (body["request"]["seq_len"], body["request"]["gradient_checkpointing"])
    assert "r=4" in body["request"]["method_in_full"]
    assert {"seq_len", "gradient_checkpointing", "rank"} == set(body["config"]["overridden"])
    assert "1024" == body["config"]["overridden"]["seq_len"]
    text = plan("estimate", "--config", SFT, "--seq-len", "256").out
    assert "typed over it" in text
    assert "--seq-len (the files: 1024)" in text
    assert "22 keys" not in text
    assert "keys without effect on memory, time and cost" in text


def test_typing_everything_is_the_same_as_the_file(plan: Any) -> None:
    """The file's meaning spelled out on the command line gives the same figures."""
    typed = (
        "--model HuggingFaceTB/SmolLM2-135M --method lora(r=16,target_modules=q_proj,k_proj,v_proj,o_proj) --seq-len 1024 "
        "--micro-batch-size 2 --gradient-accumulation-steps 4 --dtype bf16 --precision autocast --optimizer adamw_fused "
        "--gradient-checkpointing --loss trl --padded"
    )
    ours, theirs = plan("estimate", "--config", SFT, "--json").json(), plan("estimate", *typed.split(), "--json").json()
    assert theirs["peak"] == ours["peak"]
    assert theirs["components"] == ours["components"]


def test_the_cheapest_plan_for_a_file(plan: Any) -> None:
    """`plan --config` searches cards for exactly this run: its method, batch and number of updates."""
    outcome = plan("--config", str(EXAMPLES / "trl_sft_qlora.yaml"), "--gpu", "a100-80g,rtx-4090", "--gpus", "1", "--json")
    body = outcome.json()
    assert outcome.code == 0
    job = body["request"]
    assert (4096, 16, 500 * 16 * 4096) == (job["seq_len"], job["global_batch_size"], job["tokens"])
    assert {(1, 16, "paged_adamw_8bit")} == {
        (p["micro_batch_size"], p["gradient_accumulation_steps"], p["optimizer"]) for p in body["plans"]
    }
    assert [{"file": str(EXAMPLES / "trl_sft_qlora.yaml"), "format": "trl-sft"}] == body["config"]["files"]
    text = plan("--config", str(EXAMPLES / "trl_sft_qlora.yaml"), "--gpu", "a100-80g", "--gpus", "1").out
    assert "config" in text
    assert "keys used" in text


def test_passes_over_samples(plan: Any) -> None:
    """Epochs of the file count with --samples."""
    body = plan("--config", SFT, "--gpu", "a100-80g", "--gpus", "1", "--samples", "1000", "--json").json()
    assert 1000 * 1024 == body["request"]["tokens"]


def test_several_files(plan: Any) -> None:
    """A training file, accelerate's and an adapter's together."""
    files = [SFT, str(EXAMPLES / "accelerate_fsdp2.yaml"), str(EXAMPLES / "adapter_config.json")]
    arguments = [word for file in files for word in ("--config", file)]
    body = plan("estimate", *arguments, "--json").json()
    request = body["request"]
    assert (8, 3, "master-weights") == (request["data_parallel"], request["zero_stage"], request["precision"])
    assert "use_rslora=true" in request["method_in_full"]
    assert any("adapter is given by" in warning for warning in body["warnings"])


def test_what_no_file_says_is_asked_for(plan: Any) -> None:
    """Missing model, length and method: an error or a warning that names the option."""
    arguments = ("estimate", "--config", str(EXAMPLES / "training_arguments.json"))
    outcome = plan(*arguments)
    assert outcome.code == 2
    assert "--model" in outcome.err
    warnings = " ".join(plan(*arguments, "--model", "HuggingFaceTB/SmolLM2-135M", "--json").json()["warnings"])
    assert "--seq-len" in warnings
    assert "--method" in warnings
    typed = ("--model", "HuggingFaceTB/SmolLM2-135M", "--seq-len", "128", "--method", "full")
    said = " ".join(plan(*arguments, *typed, "--json").json()["warnings"])
    assert "--seq-len" not in said
    assert "--method" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config", "/nonexistent.yaml"), "Cannot read '/nonexistent.yaml'"),
        (("--config", SFT, "--config-format", "axolotol"), "Did you mean 'axolotl'"),
        (("--config", SFT, "--config-format", "trl-sft", "--config-format", "peft"), "2 x --config-format for 1 x --config"),
        (("--config-format", "trl-sft", "--model", "7b"), "no --config is given"),
        (("--config", SFT, "--model", "nope-7b"), "Unknown model 'nope-7b'"),
        (("--config", SFT, "--peft-config", "/nonexistent.json"), "/nonexistent.json"),
        (("--config", SFT, "--method", "lora(r=0)"), "r=0"),
        (("--config", SFT, "--reentrant", "--no-gradient-checkpointing"), "contradict each other"),
    ],
)
def test_refusals(plan: Any, arguments: tuple[str, ...], message: str) -> None:
    """One line on stderr, nothing on stdout, exit code 2."""
    outcome = plan("estimate", *arguments)
    assert (2, "", 1) == (outcome.code, outcome.out, outcome.err.count("\n"))
    assert message in outcome.err


def test_a_local_folder_as_model(plan: Any, write_config: Any, tmp_path: Path) -> None:
    """`model_name_or_path` may be a folder with a config.json."""
    write_config()
    file = tmp_path / "train.yaml"
    file.write_text(f"model_name_or_path: {tmp_path}\nmax_length: 64\nlearning_rate: 1e-4\n")
    body = plan("estimate", "--config", str(file), "--json").json()
    assert str(tmp_path) == body["request"]["model"]
    assert "fp32" == body["request"]["dtype"]


def test_explain_takes_files_too(plan: Any) -> None:
    """Every command with a step's options has --config."""
    outcome = plan("explain", "peak", "--config", SFT, "--json")
    assert 1024 == json.loads(outcome.out)["request"]["seq_len"]


def test_a_value_that_no_step_can_have_is_located(plan: Any, tmp_path: Path) -> None:
    """A length that the file gives and the planner refuses is refused with the file's line."""
    file = tmp_path / "train.yaml"
    file.write_text("model_name_or_path: Qwen/Qwen2.5-0.5B\nmax_length: 2000000000\n")
    outcome = plan("estimate", "--config", str(file))
    assert 2 == outcome.code
    assert "train.yaml' line 2 (max_length): seq-len 2000000000" in outcome.err


def test_a_pattern_of_modules(plan: Any, tmp_path: Path) -> None:
    """One text with the signs of a pattern is one for PEFT; other texts are names."""
    file = tmp_path / "train.yaml"
    file.write_text("base_model: Qwen/Qwen2.5-0.5B\nadapter: lora\nlora_r: 8\nlora_target_modules: '.*\\.[qk]_proj'\n")
    body = plan("estimate", "--config", str(file), "--json").json()
    assert "target_modules=re:.*\\.[qk]_proj" in body["request"]["method_in_full"]
    ours = plan("estimate", "--config", str(file), "--target-modules", "q_proj,k_proj", "--json").json()
    assert ours["components"] == body["components"]


def test_packing_counts_where_lengths_are_given(plan: Any) -> None:
    """A file's packing shapes the batches of --lengths; without lengths it says that nothing is padded."""
    file = str(EXAMPLES / "trl_sft_qlora.yaml")
    plain = plan("estimate", "--config", file, "--json").json()
    packed = plan("estimate", "--config", file, "--lengths", "lognormal(mean=600, p99=4000)", "--json").json()
    assert (False, 4096) == (plain["request"]["padded"], packed["request"]["seq_len"])
    assert "packing" in json.dumps({key: value for key, value in packed.items() if key != "config"})
