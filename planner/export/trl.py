"""TRL and PEFT: a training script, its YAML, accelerate's configuration, and the lines that start it."""

import json
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.export import hf_words
from tuneplan.planner.export.accelerate import (
    ACCELERATE_FILE,
    DEEPSPEED,
    DEEPSPEED_FILE,
    accelerate_config,
    deepspeed_text,
    engine_of,
    gaps_of,
    torchrun_environment,
)
from tuneplan.planner.export.job import Adapters, Export, ExportJob
from tuneplan.planner.export.trl_script import SCRIPT
from tuneplan.planner.export.yaml_text import Commented, document
from tuneplan.planner.methods.lora import Lora

NAME = "TRL"
CONFIG = "train.yaml"
LOSSES = {"eager": True, "trl": False}
"""Losses that the script can compute: whether it is the model's own."""
_LORA_WORDS = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "autocast_adapter_dtype")


def write(job: ExportJob, engine: str | None = None) -> Export:
    """Files of a job for TRL 1.16. Raises InputError for what the Trainer cannot do."""
    hf_words.refuse_loop(job, NAME)
    if job.settings.loss not in LOSSES:
        raise InputError(
            f"{NAME} cannot compute the loss {job.settings.loss!r} of the plan; export a plan with --loss "
            f"{' or '.join(sorted(LOSSES))}"
        )
    adapters = job.adapters(NAME)
    chosen = engine_of(job, engine)
    own = adapters.part is not None and not _in_model_config(adapters)
    files = {
        "train.py": SCRIPT,
        CONFIG: document(_config(job, adapters, own, chosen), job.head("TRL's SFTTrainer", CONFIG)),
        ACCELERATE_FILE: document(accelerate_config(job, chosen), job.head("accelerate", ACCELERATE_FILE)),
        "launch.sh": _launch(job, chosen),
        "requirements.txt": _requirements(adapters, chosen),
    }
    if own:
        files["adapter/adapter_config.json"] = json.dumps(adapters.config(job.model), indent=2) + "\n"
    if chosen == DEEPSPEED:
        files[DEEPSPEED_FILE] = deepspeed_text(job)
    return Export(files, gaps_of(job, chosen), CONFIG)


def _in_model_config(adapters: Adapters) -> bool:
    """Whether TRL's ModelConfig can say all of a LoRA; everything else goes through PEFT's own file."""
    lora = adapters.lora
    if lora is None or float(lora.lora_alpha) != int(lora.lora_alpha):
        return False
    plain = Lora(**{name: getattr(lora, name) for name in _LORA_WORDS})
    return plain == lora and not lora.target_modules[0].startswith("re:")


def _config(job: ExportJob, adapters: Adapters, own: bool, engine: str) -> dict[str, Any]:
    """train.yaml: TRL's ScriptArguments, SFTConfig and ModelConfig, and the script's PlanConfig."""
    settings = job.settings
    values: dict[str, Any] = {
        "model_name_or_path": job.model,
        "dtype": hf_words.DTYPES[settings.dtype],
        "attn_implementation": hf_words.ATTENTIONS[settings.attention],
        "dataset_name": job.data.name,
        "output_dir": job.output_dir,
        "max_length": int(settings.seq_len),
    }
    if settings.padded:
        values["packing"] = False
    else:
        values["packing"] = Commented(
            True, "Every batch is full, as the plan says; without packing it is padded, and has a mask."
        )
        values["packing_strategy"] = "wrapped"
    values |= {
        "per_device_train_batch_size": int(settings.micro_batch_size),
        "gradient_accumulation_steps": job.accumulation,
        "max_steps": Commented(job.updates, f"{job.tokens:,} tokens in updates of {job.global_batch_size} sequences."),
        "learning_rate": Commented(job.learning_rate, "A value to begin with; no plan depends on it."),
        "optim": hf_words.optimizer(job, NAME),
        "max_grad_norm": settings.max_grad_norm,
        **hf_words.mixed(job, engine),
        **hf_words.checkpointing(job),
    }
    values |= {"model_loss": LOSSES[settings.loss], "logging_steps": 10, "save_total_limit": 2, "report_to": "none"}
    if settings.attention_dropout is not None:
        values["attention_dropout"] = settings.attention_dropout
    if job.plan.request.empty_cache_steps:
        values["torch_empty_cache_steps"] = job.plan.request.empty_cache_steps
    return values | quantized(adapters) | _adapter(adapters, own)


def quantized(adapters: Adapters) -> dict[str, Any]:
    """ModelConfig's words for the base."""
    base = adapters.base
    if base is None:
        return {}
    if base.quant_type == "int8":
        return {"load_in_8bit": True, "prepare_kbit": base.prepare_kbit}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": base.quant_type,
        "use_bnb_nested_quant": base.double_quant,
        "prepare_kbit": base.prepare_kbit,
    }


def _adapter(adapters: Adapters, own: bool) -> dict[str, Any]:
    if adapters.part is None:
        return {}
    values: dict[str, Any] = {"autocast_adapter_dtype": adapters.fp32}
    lora = adapters.lora
    if own or lora is None:
        return values | {"adapter_config": "adapter"}
    values |= {
        "use_peft": True,
        "lora_r": lora.r,
        "lora_alpha": int(lora.lora_alpha),
        "lora_dropout": float(lora.lora_dropout),
        "lora_target_modules": list(lora.target_modules),
        "use_rslora": lora.use_rslora,
        "use_dora": lora.use_dora,
    }
    return values | ({"lora_modules_to_save": list(adapters.saved)} if adapters.saved else {})


def _requirements(adapters: Adapters, engine: str) -> str:
    names = ["torch", "transformers", "trl", "peft", "accelerate", "datasets"]
    quantized_or_8bit = ["bitsandbytes"]
    return hf_words.requirements(*names, *quantized_or_8bit, *(["deepspeed"] if engine == DEEPSPEED else []))


def _launch(job: ExportJob, engine: str) -> str:
    """The line that starts it, and the same with torchrun."""
    head = "".join(f"# {line}\n" for line in job.head(NAME, "launch.sh").splitlines())
    environment = torchrun_environment(job, engine)
    torchrun = f"torchrun --standalone --nproc-per-node {job.gpus} train.py --config {CONFIG}"
    words = " ".join([*(f"{name}={value}" for name, value in environment.items()), torchrun])
    alloc = "export PYTORCH_ALLOC_CONF=expandable_segments:True\n" if job.plan.request.expandable_segments else ""
    return (
        "#!/usr/bin/env bash\n"
        f"{head}set -euo pipefail\n"
        'cd "$(dirname "$0")"\n'
        f"{alloc}# The same with torchrun:\n# {words}\n"
        f'accelerate launch --config_file {ACCELERATE_FILE} train.py --config {CONFIG} "$@"\n'
    )
