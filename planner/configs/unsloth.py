"""Unsloth's arguments as far as they map: `unsloth train --config`, and the arguments of FastLanguageModel in a flat file.

Keys and defaults are those of unsloth 2026.10.9 (unsloth_cli/config.py); flat files have the names of
`FastLanguageModel.from_pretrained` and `get_peft_model`, beside those of TRL. Its kernels keep less than what is counted.
"""

from typing import Any

from tuneplan.planner.configs.adapter_keys import Adapter, note_adapter
from tuneplan.planner.configs.facts import Facts
from tuneplan.planner.configs.section import Section
from tuneplan.planner.configs.table import Table, defaults, known_keys, version, words
from tuneplan.planner.yaml_file import YamlFile

NAME = "unsloth"
SECTIONS = {"training": "TrainingConfig", "lora": "LoraConfig", "data": "DataConfig", "logging": "LoggingConfig"}
TABLE = Table(
    {
        "model": "model",
        "training_type": "method",
        "max_seq_length": "tokens of a sequence",
        "load_in_4bit": "4-bit base",
        "load_in_8bit": "8-bit base",
        "full_finetuning": "method",
        "dtype": "dtype of the loaded weights",
        "batch_size": "micro-batch size",
        "gradient_accumulation_steps": "micro-batches of an update",
        "num_epochs": "passes over the data",
        "max_steps": "updates",
        "packing": "packed sequences",
        "gradient_checkpointing": "gradient checkpointing",
        "lora_r": "LoRA's rank",
        "lora_alpha": "LoRA's scaling",
        "lora_dropout": "LoRA's dropout",
        "target_modules": "LoRA's modules",
        "use_rslora": "LoRA's scaling",
        "use_dora": "DoRA",
        "optim": "optimizer",
        "max_grad_norm": "clipping of gradients",
    },
    {
        "which data": words(
            "dataset local_dataset format_type train_on_completions random_seed seed dataset_text_field dataset_num_proc"
        ),
        "logging and saving": words(
            """output_dir save_steps enable_wandb wandb_project wandb_token enable_tensorboard tensorboard_dir hf_token
            logging_steps report_to token save_method save_model push_model hub_path hub_token save_path save_gguf quantization"""
        ),
        "numbers of the update and its schedule": words("learning_rate warmup_steps warmup_ratio weight_decay lr_scheduler_type"),
        "which part of a vision model": words(
            """vision_all_linear finetune_vision_layers finetune_language_layers finetune_attention_modules
            finetune_mlp_modules"""
        ),
        "how the model is loaded": words("trust_remote_code device_map init_lora_weights fix_tokenizer revision"),
    },
    {
        "LoftQ": words("use_loftq loftq_config"),
        "inference beside training": words("fast_inference gpu_memory_utilization max_lora_rank"),
        "positions beyond the model's own": words("rope_scaling"),
        "modules that are trained whole": words("modules_to_save"),
        "biases": words("bias"),
    },
    {
        "model_name": "model",
        "r": "lora_r",
        "use_gradient_checkpointing": "gradient_checkpointing",
        "per_device_train_batch_size": "batch_size",
        "num_train_epochs": "num_epochs",
        "random_state": "random_seed",
    },
    {"bias": "none", "max_lora_rank": 64},
)


def read(file: YamlFile, facts: Facts, kind: str) -> None:
    """Note what the file says. Raises InputError with file and line."""
    facts.stack(f"unsloth {version('unsloth')}")
    facts.warn(
        "Unsloth's kernels keep fewer activations and its loss no logits; figures are those of transformers with Liger's loss"
    )
    own = {key: value for group in SECTIONS.values() for key, value in defaults("unsloth", group).items()}
    parts = [key for key in SECTIONS if isinstance(file.data.get(key), dict)]
    table = Table(TABLE.used, TABLE.irrelevant, TABLE.not_modelled, TABLE.renamed, {**own, **TABLE.defaults})
    top = Section(file, (), file.data, table, facts, skipped=set(parts), numbers_in_text=True)
    places: list[Section] = [top]
    places += [Section(file, (k,), file.data[k], _only(table, SECTIONS[k]), facts, numbers_in_text=True) for k in parts]
    read_places(_Places(places), facts)
    for place in places:
        place.finish()


def _only(table: Table, group: str) -> Table:
    """The keys of one section of `unsloth train --config`."""
    names = set(known_keys("unsloth")[group])
    return Table(
        {key: what for key, what in table.used.items() if key in names},
        {reason: [key for key in keys if key in names] for reason, keys in table.irrelevant.items()},
        {reason: [key for key in keys if key in names] for reason, keys in table.not_modelled.items()},
        {}, table.defaults,
    )  # fmt: skip


class _Places:
    """Finds the section that gives a key."""

    def __init__(self, sections: list[Section]) -> None:
        self.sections = sections

    def of(self, key: str) -> Section:
        """The section with the key, else the top."""
        return next((section for section in self.sections[1:] if key in section), self.sections[0])


def read_places(places: _Places, facts: Facts) -> None:
    """Note what the sections say together."""
    of = places.of
    of("model").fact("model", of("model").text("model"), "model")
    of("max_seq_length").fact("seq_len", of("max_seq_length").integer("max_seq_length", 2048, least=2), "max_seq_length", NAME)
    of("batch_size").fact("micro_batch_size", of("batch_size").integer("batch_size", 2), "batch_size", NAME)
    key = "gradient_accumulation_steps"
    of(key).fact(key, of(key).integer(key, 4), key, NAME)
    of("num_epochs").fact("epochs", of("num_epochs").number("num_epochs", 3.0), "num_epochs", NAME)
    updates = of("max_steps").integer("max_steps", 0, least=-1)
    if updates is not None and updates > 0:
        of("max_steps").fact("max_steps", updates, "max_steps")
    of("max_grad_norm").fact("max_grad_norm", of("max_grad_norm").number("max_grad_norm", 1.0), "max_grad_norm", NAME)
    facts.set("optimizer", "adamw_8bit", f"default of {NAME}", explicit=False)
    if "optim" in of("optim"):
        from tuneplan.planner.configs.optimizer_names import read_optimizer

        read_optimizer(of("optim"), "optim", "adamw_8bit", NAME)
    given = of("gradient_checkpointing").raw("gradient_checkpointing", "unsloth")
    on = given is True or str(given).lower() in ("unsloth", "true", "1", "yes")
    of("gradient_checkpointing").fact("gradient_checkpointing", "non-reentrant" if on else "off", "gradient_checkpointing", NAME)
    if str(given).lower() == "unsloth":
        facts.warn("Unsloth's gradient checkpointing keeps its checkpoints in host memory; figures have them on the GPU")
    packed = of("packing").flag("packing")
    facts.set("packing", packed, of("packing").source("packing") if packed else f"default of {NAME}", packed)
    facts.set("padded", not packed, of("packing").source("packing") if packed else f"default of {NAME}", packed)
    facts.set("attention", "flash", f"{NAME}'s attention", explicit=False)
    facts.set("loss", "liger", f"{NAME}'s fused loss", explicit=False)
    facts.set("mixed_precision", "bf16", f"default of {NAME}", explicit=False)
    _method(places, facts)


def _method(places: _Places, facts: Facts) -> None:
    of = places.of
    full = of("training_type").choice("training_type", ("lora", "full"), "lora") == "full" or of("full_finetuning").flag(
        "full_finetuning"
    )
    dtype = of("dtype").choice("dtype", ("bfloat16", "float16", "float32", "none"), "none")
    short = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}.get(dtype or "", "bf16")
    facts.set("load_dtype", short, of("dtype").source("dtype") if dtype != "none" else f"{NAME} loads in bf16", dtype != "none")
    if full:
        for key in ("load_in_4bit", "load_in_8bit"):
            of(key).raw(key)
        facts.set("adapter", None, of("training_type").source("training_type"))
        return
    if of("load_in_8bit").flag("load_in_8bit"):
        facts.set("quantized", {"quant_type": "int8", "prepare_kbit": False}, of("load_in_8bit").source("load_in_8bit"))
    elif of("load_in_4bit").flag("load_in_4bit", True):
        source = of("load_in_4bit").source("load_in_4bit") if "load_in_4bit" in of("load_in_4bit") else f"default of {NAME}"
        facts.set("quantized", {"quant_type": "nf4", "double_quant": True, "prepare_kbit": False}, source)
    flat = len(places.sections) == 1
    options: dict[str, Any] = {
        "r": of("lora_r").integer("lora_r", 16 if flat else 64),
        "lora_alpha": of("lora_alpha").number("lora_alpha", 16),
        "lora_dropout": of("lora_dropout").number("lora_dropout", 0.0),
        "use_rslora": of("use_rslora").flag("use_rslora"),
        "use_dora": of("use_dora").flag("use_dora"),
    }
    targets = of("target_modules").names("target_modules") or words("q_proj k_proj v_proj o_proj gate_proj up_proj down_proj")
    adapter = Adapter("lora", options, tuple(sorted(targets)))
    place = of("lora_r")
    if "lora_r" in place:
        note_adapter(place, adapter, "lora_r")
    else:
        facts.set("adapter", adapter, f"default of {NAME}")
