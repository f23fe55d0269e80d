"""LLaMA-Factory: one YAML file, the data set's description, and accelerate's or DeepSpeed's file where the plan needs it.

Keys are those of LLaMA-Factory 0.9.5 (hparams/); what it does with dtypes is in model/adapter.py.
"""

import json
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.export import hf_words
from tuneplan.planner.export.accelerate import (
    ACCELERATE_FILE,
    DEEPSPEED,
    DEEPSPEED_FILE,
    FSDP,
    accelerate_config,
    deepspeed_text,
    engine_of,
    gaps_of,
)
from tuneplan.planner.export.job import Adapters, Export, ExportJob
from tuneplan.planner.export.yaml_text import Commented, document
from tuneplan.planner.methods.lora import Lora
from tuneplan.planner.methods.targeted import ALL_LINEAR, PATTERN

NAME = "LLaMA-Factory"
CONFIG = "train.yaml"
VERSION = "0.9.5"
DATA = "training_data"
ATTENTIONS = {"eager": "disabled", "sdpa": "sdpa", "flash": "fa2"}
_OPTIONS = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "autocast_adapter_dtype")


def write(job: ExportJob, engine: str | None = None) -> Export:
    """Files of a job for LLaMA-Factory 0.9.5. Raises InputError for what it cannot do."""
    hf_words.refuse_loop(job, NAME)
    hf_words.refuse_model_options(job, NAME)
    adapters = job.adapters(NAME)
    chosen = engine_of(job, engine)
    files = {
        CONFIG: document(_config(job, adapters, chosen), job.head(NAME, CONFIG)),
        "dataset_info.json": json.dumps({DATA: _dataset(job)}, indent=2) + "\n",
        "launch.sh": _launch(job, chosen),
        "requirements.txt": f"llamafactory=={VERSION}\n",
    }
    if chosen == FSDP:
        files[ACCELERATE_FILE] = document(accelerate_config(job, chosen), job.head("accelerate", ACCELERATE_FILE))
    if chosen == DEEPSPEED:
        files[DEEPSPEED_FILE] = deepspeed_text(job)
    return Export(files, (*gaps_of(job, chosen), *_gaps(job, adapters)), CONFIG)


def _config(job: ExportJob, adapters: Adapters, engine: str) -> dict[str, Any]:
    settings = job.settings
    values: dict[str, Any] = {
        "model_name_or_path": job.model,
        "flash_attn": ATTENTIONS[settings.attention],
        "stage": "sft" if job.data.style == "chat" else "pt",
        "do_train": True,
        **_method(job, adapters),
        "dataset_dir": ".",
        "dataset": DATA,
        "cutoff_len": int(settings.seq_len),
        "packing": Commented(not settings.padded, "The plan counts full batches." if not settings.padded else "Padded."),
        "output_dir": job.output_dir,
        "per_device_train_batch_size": int(settings.micro_batch_size),
        "gradient_accumulation_steps": job.accumulation,
        "max_steps": Commented(job.updates, f"{job.tokens:,} tokens in updates of {job.global_batch_size} sequences."),
        "learning_rate": Commented(job.learning_rate, "A value to begin with; no plan depends on it."),
        "lr_scheduler_type": "cosine",
        "optim": hf_words.optimizer(job, NAME),
        "max_grad_norm": settings.max_grad_norm,
        **_precision(job, adapters, engine),
        "disable_gradient_checkpointing": settings.gradient_checkpointing == "off",
        "use_reentrant_gc": settings.gradient_checkpointing == "reentrant",
        "enable_liger_kernel": settings.loss == "liger",
        "logging_steps": 10,
        "save_total_limit": 2,
        "report_to": "none",
    }
    if job.data.style == "chat":
        values["template"] = Commented("default", "The chat template; name that of your model.")
    if engine == DEEPSPEED:
        values["deepspeed"] = DEEPSPEED_FILE
    if job.plan.request.empty_cache_steps:
        values["torch_empty_cache_steps"] = job.plan.request.empty_cache_steps
    return values


def _method(job: ExportJob, adapters: Adapters) -> dict[str, Any]:
    if adapters.part is None:
        return {"finetuning_type": "full"}
    lora = adapters.lora
    if lora is None or Lora(**{name: getattr(lora, name) for name in _OPTIONS}) != lora:
        raise InputError(f"{NAME} has no adapter like {job.method.name}; export a plan of lora or qlora, or --format trl")
    if float(lora.lora_alpha) != int(lora.lora_alpha):
        raise InputError(f"{NAME} takes whole numbers for lora_alpha, not {lora.lora_alpha}; export a plan with a whole one")
    first = lora.target_modules[0]
    if first.startswith(PATTERN):
        raise InputError(f"{NAME} takes names of modules, not a pattern ({first}); name them in target_modules")
    values: dict[str, Any] = {
        "finetuning_type": "lora",
        "lora_rank": lora.r,
        "lora_alpha": int(lora.lora_alpha),
        "lora_dropout": float(lora.lora_dropout),
        "lora_target": "all" if first == ALL_LINEAR else ",".join(lora.target_modules),
        "use_rslora": lora.use_rslora,
        "use_dora": lora.use_dora,
    }
    if adapters.saved:
        values["additional_target"] = ",".join(adapters.saved)
    base = adapters.base
    if base is not None:
        values["quantization_method"] = "bnb"
        values["quantization_bit"] = 8 if base.quant_type == "int8" else 4
        if base.quant_type != "int8":
            values |= {"quantization_type": base.quant_type, "double_quantization": base.double_quant}
        values["upcast_layernorm"] = base.prepare_kbit
    return values


def _precision(job: ExportJob, adapters: Adapters, engine: str) -> dict[str, Any]:
    """Without `pure_bf16` what is trained is cast to fp32, and the step runs under autocast."""
    settings = job.settings
    if adapters.part is not None and not adapters.fp32 and engine != DEEPSPEED:
        raise InputError(
            f"{NAME} keeps adapters in fp32, and the plan has autocast_adapter_dtype=false; export a plan without that option"
        )
    if engine == DEEPSPEED or settings.precision == "master-weights":
        return {"bf16": settings.dtype == "bf16", "fp16": settings.dtype == "fp16"}
    if settings.autocast:
        if adapters.part is None and settings.dtype != "fp32":
            raise InputError(
                f"{NAME} casts weights that are trained to fp32 under autocast, and the plan keeps them in {settings.dtype}; "
                "export a plan with --dtype fp32 --precision autocast, or --precision pure"
            )
        return {"bf16": settings.autocast == "bf16", "fp16": settings.autocast == "fp16"}
    if settings.dtype == "fp16":
        raise InputError(f"{NAME} has no pure fp16; export a plan with --dtype bf16, or --precision autocast")
    return {"pure_bf16": settings.dtype == "bf16"}


def _dataset(job: ExportJob) -> dict[str, Any]:
    """The entry of dataset_info.json."""
    where = {"file_name": job.data.name} if job.data.local else {"hf_hub_url": job.data.name, "split": "train"}
    if job.data.style == "text":
        return {**where, "columns": {"prompt": "text"}}
    tags = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    }
    return {**where, "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}


def _gaps(job: ExportJob, adapters: Adapters) -> tuple[str, ...]:
    gaps = []
    if adapters.base is not None and adapters.base.prepare_kbit:
        gaps.append(
            f"{NAME} casts norms to fp32 (upcast_layernorm) where the plan's prepare_kbit=true casts embeddings and the head too"
        )
    if job.settings.loss == "liger":
        gaps.append(f"{NAME}'s enable_liger_kernel replaces norms, rotary embeddings and MLP too, and loss=liger the loss alone")
    return tuple(gaps)


def _launch(job: ExportJob, engine: str) -> str:
    head = "".join(f"# {line}\n" for line in job.head(NAME, "launch.sh").splitlines())
    alloc = "export PYTORCH_ALLOC_CONF=expandable_segments:True\n" if job.plan.request.expandable_segments else ""
    opened = f'#!/usr/bin/env bash\n{head}set -euo pipefail\ncd "$(dirname "$0")"\n{alloc}'
    if engine == FSDP:
        return f"{opened}accelerate launch --config_file {ACCELERATE_FILE} --module llamafactory.launcher {CONFIG}\n"
    torchrun = f"torchrun --standalone --nproc-per-node {job.gpus} -m llamafactory.launcher {CONFIG}"
    line = f"FORCE_TORCHRUN=1 NPROC_PER_NODE={job.gpus} llamafactory-cli train {CONFIG}"
    return f"{opened}# The same with torchrun:\n# {torchrun}\n{line}\n"
