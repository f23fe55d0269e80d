"""axolotl: one YAML file, and DeepSpeed's where the plan needs it.

Keys are those of axolotl 0.19 (utils/schemas/config.py and beside it); what it does with dtypes is in loaders/model.py.
"""

from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.export import hf_words
from tuneplan.planner.export.accelerate import DEEPSPEED, DEEPSPEED_FILE, FSDP, deepspeed_text, engine_of, gaps_of
from tuneplan.planner.export.job import Adapters, Export, ExportJob
from tuneplan.planner.export.yaml_text import Commented, document
from tuneplan.planner.methods.lora import Lora
from tuneplan.planner.methods.targeted import ALL_LINEAR, PATTERN

NAME = "axolotl"
CONFIG = "axolotl.yaml"
VERSION = "0.19.0"
_OPTIONS = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "autocast_adapter_dtype",
    "layers_to_transform", "rank_pattern",
)  # fmt: skip


def write(job: ExportJob, engine: str | None = None) -> Export:
    """Files of a job for axolotl 0.19. Raises InputError for what it cannot do."""
    hf_words.refuse_loop(job, NAME)
    hf_words.refuse_model_options(job, NAME)
    adapters = job.adapters(NAME)
    chosen = engine_of(job, engine)
    files = {CONFIG: document(_config(job, adapters, chosen), job.head(NAME, CONFIG)), "launch.sh": _launch(job)}
    if chosen == DEEPSPEED:
        files[DEEPSPEED_FILE] = deepspeed_text(job)
    files["requirements.txt"] = f"axolotl=={VERSION}\n"
    return Export(files, (*gaps_of(job, chosen), *_gaps(job, adapters)), CONFIG)


def _config(job: ExportJob, adapters: Adapters, engine: str) -> dict[str, Any]:
    settings = job.settings
    values: dict[str, Any] = {
        "base_model": job.model,
        "datasets": [_dataset(job)],
        "dataset_prepared_path": "prepared",
        "output_dir": job.output_dir,
        "sequence_len": int(settings.seq_len),
        "sample_packing": Commented(not settings.padded, "The plan counts full batches." if not settings.padded else "Padded."),
        "pad_to_sequence_len": not settings.padded,
        "attn_implementation": hf_words.ATTENTIONS[settings.attention],
        "micro_batch_size": int(settings.micro_batch_size),
        "gradient_accumulation_steps": job.accumulation,
        "num_epochs": 1,
        "max_steps": Commented(job.updates, f"{job.tokens:,} tokens in updates of {job.global_batch_size} sequences."),
        "learning_rate": Commented(job.learning_rate, "A value to begin with; no plan depends on it."),
        "lr_scheduler": "cosine",
        "optimizer": hf_words.optimizer(job, NAME),
        "max_grad_norm": settings.max_grad_norm,
        **_precision(job, engine),
        "tf32": False,
        **hf_words.checkpointing(job),
    }
    if settings.loss == "liger":
        values |= {"plugins": ["axolotl.integrations.liger.LigerPlugin"], "liger_fused_linear_cross_entropy": True}
    if adapters.base is not None or adapters.part is not None:
        values |= _adapter(job, adapters)
    if engine == FSDP:
        values |= {
            "fsdp_version": 2,
            "fsdp_config": {
                "reshard_after_forward": job.sharding.zero_stage == 3,
                "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "cpu_ram_efficient_loading": True,
                "offload_params": False,
                "state_dict_type": "FULL_STATE_DICT",
            },
        }
    if engine == DEEPSPEED:
        values["deepspeed"] = DEEPSPEED_FILE
    if job.plan.request.empty_cache_steps:
        values["torch_empty_cache_steps"] = job.plan.request.empty_cache_steps
    return values | {"logging_steps": 10, "save_total_limit": 2}


def _dataset(job: ExportJob) -> dict[str, Any]:
    where: dict[str, Any] = {"path": job.data.name}
    if job.data.local:
        where["ds_type"] = "json"
    if job.data.style == "chat":
        return where | {"split": "train", "type": "chat_template", "field_messages": "messages"}
    return where | {"split": "train", "type": "completion", "field": "text"}


def _precision(job: ExportJob, engine: str) -> dict[str, Any]:
    """`bf16` and `bfloat16` both turn autocast on and load in 16 bits; `float16` and `float32` only load so.

    Mirrors `_configure_precision_settings` of core/builders/base.py and utils/config/__init__.py.
    """
    settings = job.settings
    master = settings.precision == "master-weights"
    if engine != DEEPSPEED and settings.precision == "pure" and settings.dtype == "bf16":
        raise InputError(
            f"{NAME} runs under autocast wherever it is told bf16, and the plan's precision is pure; use --precision autocast"
        )
    if engine == DEEPSPEED or settings.autocast or master:
        if settings.autocast and settings.dtype == "fp32":
            raise InputError(
                f"{NAME} loads the weights in 16 bits where it runs under autocast, and the plan keeps them in fp32; export a "
                "plan with --dtype bf16 --precision autocast"
            )
        return {"bf16": settings.dtype == "bf16", "fp16": settings.dtype == "fp16"}
    return {"bf16": False, "fp16": False, "float16": settings.dtype == "fp16", "float32": settings.dtype == "fp32"}


def _adapter(job: ExportJob, adapters: Adapters) -> dict[str, Any]:
    lora = adapters.lora
    if lora is None or Lora(**{name: getattr(lora, name) for name in _OPTIONS}) != lora:
        what = job.method.name if lora is None else f"{job.method.name} (bias={lora.bias})"
        raise InputError(f"{NAME} has no adapter like {what}; export a plan of lora or qlora, or --format trl")
    base = adapters.base
    if float(lora.lora_alpha) != int(lora.lora_alpha):
        raise InputError(f"{NAME} takes whole numbers for lora_alpha, not {lora.lora_alpha}; export a plan with a whole one")
    values: dict[str, Any] = {
        "adapter": "qlora" if base is not None and base.quant_type != "int8" else "lora",
        "lora_r": lora.r,
        "lora_alpha": int(lora.lora_alpha),
        "lora_dropout": float(lora.lora_dropout),
        "peft_use_rslora": lora.use_rslora,
        "peft_use_dora": lora.use_dora,
        "peft_autocast_adapter_dtype": lora.autocast_adapter_dtype,
        **dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel"), False),
    }
    first = lora.target_modules[0]
    if first == ALL_LINEAR:
        values["lora_target_linear"] = True
    else:
        values["lora_target_modules"] = first.removeprefix(PATTERN) if first.startswith(PATTERN) else list(lora.target_modules)
    if lora.layers_to_transform:
        values["peft_layers_to_transform"] = list(lora.layers_to_transform)
    if lora.rank_pattern:
        values["lora_rank_pattern"] = {name: int(r) for name, _, r in (item.rpartition(":") for item in lora.rank_pattern)}
    if adapters.saved:
        values["lora_modules_to_save"] = list(adapters.saved)
    if base is not None and base.quant_type == "int8":
        values["load_in_8bit"] = True
    elif base is not None:
        values["load_in_4bit"] = True
        values["bnb_config_kwargs"] = {"bnb_4bit_quant_type": base.quant_type, "bnb_4bit_use_double_quant": base.double_quant}
    return values


def _gaps(job: ExportJob, adapters: Adapters) -> tuple[str, ...]:
    gaps = []
    if adapters.base is not None and not adapters.base.prepare_kbit:
        gaps.append(f"{NAME} always calls prepare_model_for_kbit_training, and the plan has prepare_kbit=false")
    if not job.settings.padded and job.settings.attention != "flash":
        gaps.append(
            f"{NAME} packs sequences with a mask where attention is {job.settings.attention}, and the plan counts none; use "
            "--attention flash, or --padded"
        )
    return tuple(gaps)


def _launch(job: ExportJob) -> str:
    head = "".join(f"# {line}\n" for line in job.head(NAME, "launch.sh").splitlines())
    alloc = "export PYTORCH_ALLOC_CONF=expandable_segments:True\n" if job.plan.request.expandable_segments else ""
    return (
        "#!/usr/bin/env bash\n"
        f'{head}set -euo pipefail\ncd "$(dirname "$0")"\n{alloc}'
        f"# The same with torchrun:\n# torchrun --standalone --nproc-per-node {job.gpus} -m axolotl.cli.train {CONFIG}\n"
        f'axolotl train {CONFIG} --launcher torchrun "$@" -- --nproc-per-node={job.gpus}\n'
    )
