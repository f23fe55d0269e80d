"""The formats that are read, and how a file shows which it is."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from tuneplan.planner.configs.facts import Facts
from tuneplan.planner.configs.table import known_keys
from tuneplan.planner.errors import UnknownNameError
from tuneplan.planner.secrets import shown_key
from tuneplan.planner.yaml_file import YamlFile

Reader = Callable[[YamlFile, Facts, str], None]

FORMATS = {
    "peft": "peft_adapter",
    "accelerate": "accelerate",
    "deepspeed": "deepspeed",
    "torchtune": "torchtune",
    "axolotl": "axolotl",
    "llama-factory": "llama_factory",
    "unsloth": "unsloth",
    "trl-sft": "trl",
    "trl-dpo": "trl",
    "trl-reward": "trl",
    "trl-grpo": "trl",
    "trl-kto": "trl",
    "trl-rloo": "trl",
    "transformers": "transformers_trainer",
}
"""Each format and the module whose `read` reads it."""


def reader(kind: str) -> Reader:
    """The function that reads a format."""
    found: Reader = import_module(f"tuneplan.planner.configs.{FORMATS[kind]}").read
    return found


def find(name: str) -> str:
    """A format by its name. Raises UnknownNameError."""
    key = name.strip().lower().replace("_", "-")
    key = {"llamafactory": "llama-factory", "trl": "trl-sft", "sft": "trl-sft", "dpo": "trl-dpo"}.get(key, key)
    if key not in FORMATS:
        raise UnknownNameError("config format", name, FORMATS, "docs/configs.md")
    return key


def detect(file: YamlFile) -> str:
    """The format that a file's keys show. Raises InputError where they show none."""
    data: Mapping[str, Any] = file.data
    keys = set(data)
    if "peft_type" in keys:
        return "peft"
    if keys & {"compute_environment", "distributed_type", "main_training_function"}:
        return "accelerate"
    if keys & {"zero_optimization", "train_micro_batch_size_per_gpu"} or any(
        isinstance(data.get(k), dict) for k in ("bf16", "fp16")
    ):
        return "deepspeed"
    if any(isinstance(value, dict) and "_component_" in value for value in data.values()):
        return "torchtune"
    if "base_model" in keys:
        return "axolotl"
    llama_factory = known_keys("llamafactory")
    trainer = set(known_keys("transformers")["Seq2SeqTrainingArguments"])
    own = {
        k
        for group in llama_factory
        if group != "GeneratingArguments" and isinstance(llama_factory[group], dict)
        for k in llama_factory[group]
    }
    strong = {"finetuning_type", "stage", "cutoff_len", "template", "lora_target", "lora_rank", "pure_bf16", "dataset_dir"}
    if keys & strong and len(keys & own) >= len(keys) / 2:
        return "llama-factory"
    if _unsloth(data):
        return "unsloth"
    found = _trl(keys, trainer)
    if found:
        return found
    shown = ", ".join(repr(shown_key(key)) for key in sorted(keys)[:5])
    raise file.error((), f"no tool is recognised by these keys ({shown}). Name it with --config-format: {', '.join(FORMATS)}.")


def _unsloth(data: Mapping[str, Any]) -> bool:
    if all(isinstance(data.get(k), dict) for k in ("training", "lora")) or (
        isinstance(data.get("training"), dict) and "model" in data
    ):
        return True
    return bool({"use_gradient_checkpointing", "finetune_language_layers"} & set(data)) or (
        "max_seq_length" in data and bool({"r", "load_in_4bit", "fast_inference"} & set(data)) and "use_peft" not in data
    )


def _trl(keys: set[str], trainer: set[str]) -> str:
    trl = known_keys("trl")
    if not keys & trainer and not keys & set(trl["ModelConfig"]):
        return ""
    own = {name: set(trl[f"{name}Config"]) - trainer for name in ("SFT", "DPO", "Reward", "GRPO", "KTO", "RLOO")}
    if keys & {"num_generations", "max_completion_length", "reward_funcs"}:
        return "trl-rloo" if keys & {"normalize_advantages", "rloo_k", "reward_clip_range"} else "trl-grpo"
    if keys & {"desirable_weight", "undesirable_weight"}:
        return "trl-kto"
    if keys & {"center_rewards_coefficient"}:
        return "trl-reward"
    if keys & ({"beta", "max_prompt_length", "rpo_alpha"} | (own["DPO"] - own["SFT"] - {"disable_dropout"})):
        return "trl-dpo"
    model = (set(trl["ModelConfig"]) | {"torch_dtype"}) - trainer
    script = set(trl["ScriptArguments"]) | {"max_seq_length"}
    return "trl-sft" if keys & (own["SFT"] | model | script) else "transformers"
