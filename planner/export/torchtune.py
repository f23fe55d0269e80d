"""torchtune: the configuration of one of its recipes, and the lines that fetch the checkpoint and start it.

Keys are those of torchtune 0.6.1 (recipes/ and recipes/configs/); the model is built from the dimensions of config.json by the
builders of torchtune/models, which is torchtune's own code: the plan counts the ops of transformers.
"""

from collections.abc import Mapping
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.export.job import Adapters, Export, ExportJob
from tuneplan.planner.export.yaml_text import Commented, document
from tuneplan.planner.methods.lora import Lora
from tuneplan.planner.methods.targeted import ALL_LINEAR
from tuneplan.planner.models.lookup import load

NAME = "torchtune"
CONFIG = "torchtune.yaml"
VERSION = "0.6.1"
LOSSES = {
    "eager": {"_component_": "torch.nn.CrossEntropyLoss"},
    "chunked": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss", "num_output_chunks": 8},
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"_component_": "torch.optim.AdamW", "foreach": True},
    "adamw_fused": {"_component_": "torch.optim.AdamW", "fused": True},
    "adamw_forloop": {"_component_": "torch.optim.AdamW", "foreach": False},
    "sgd": {"_component_": "torch.optim.SGD", "foreach": True},
    "sgd_momentum": {"_component_": "torch.optim.SGD", "foreach": True, "momentum": 0.9},
    "adamw_8bit": {"_component_": "bitsandbytes.optim.AdamW8bit"},
    "paged_adamw_8bit": {"_component_": "bitsandbytes.optim.PagedAdamW8bit"},
    "paged_adamw_32bit": {"_component_": "bitsandbytes.optim.PagedAdamW32bit"},
}
_ATTENTION = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "output_proj"}
_MLP = ("gate_proj", "up_proj", "down_proj")
_OPTIONS = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_dora", "autocast_adapter_dtype")


def write(job: ExportJob, engine: str | None = None) -> Export:
    """Files of a job for torchtune 0.6.1. Raises InputError for what it cannot do."""
    settings = job.settings
    if engine not in (None, "fsdp", "none"):
        raise InputError(f"{NAME} spreads a model by FSDP2 alone, not by {engine}; leave --engine out")
    if settings.loss not in LOSSES:
        raise InputError(f"{NAME} cannot compute the loss {settings.loss!r}; export a plan with --loss chunked or eager")
    if settings.precision != "pure":
        raise InputError(f"{NAME} trains in one dtype, and the plan's precision is {settings.precision}; use --precision pure")
    if settings.dtype == "fp16":
        raise InputError(f"{NAME} trains in bf16 or fp32; export a plan with --dtype bf16")
    if settings.attention == "eager":
        raise InputError(f"{NAME} uses PyTorch's sdpa; export a plan with --attention sdpa")
    if settings.gradient_checkpointing == "reentrant":
        raise InputError(f"{NAME} has no reentrant checkpointing; export a plan without --reentrant")
    if job.gpus > 1 and job.sharding.zero_stage < 2:
        raise InputError(f"{NAME} has no {job.sharding.label}; export a plan with --zero-stage 2 or 3")
    if job.plan.request.optimizer.name not in OPTIMIZERS:
        raise InputError(f"{NAME} builds no {job.plan.request.optimizer.name}; export a plan with --optimizer adamw_fused")
    adapters = job.adapters(NAME)
    config = load(job.plan.request.spec.id)[1].mapping
    files = {
        CONFIG: document(_config(job, adapters, config), job.head(NAME, CONFIG)),
        "launch.sh": _launch(job, adapters),
        "requirements.txt": f"torch==2.13.0\ntorchao==0.17.0\ntorchtune=={VERSION}\nbitsandbytes==0.50.2\n",
    }
    return Export(files, _gaps(job, adapters), CONFIG)


def _config(job: ExportJob, adapters: Adapters, config: Mapping[str, Any]) -> dict[str, Any]:
    settings = job.settings
    family = _family(job, config)
    values: dict[str, Any] = {
        "output_dir": job.output_dir,
        "model": _model(job, adapters, config, family),
        "tokenizer": _tokenizer(job, family),
        "checkpointer": {
            "_component_": "torchtune.training.FullModelHFCheckpointer",
            "checkpoint_dir": "checkpoint",
            "checkpoint_files": Commented([], "launch.sh lists the files of the checkpoint here."),
            "recipe_checkpoint": None,
            "output_dir": "${output_dir}",
            "model_type": _model_type(family),
        },
        "resume_from_checkpoint": False,
        "dataset": _dataset(job),
        "seed": 42,
        "shuffle": True,
        "batch_size": int(settings.micro_batch_size),
        "epochs": 1,
        "max_steps_per_epoch": Commented(job.updates, f"{job.tokens:,} tokens in updates of {job.global_batch_size} sequences."),
        "gradient_accumulation_steps": job.accumulation,
        "optimizer": {
            **OPTIMIZERS[job.plan.request.optimizer.name],
            "lr": Commented(job.learning_rate, "A value to begin with; no plan depends on it."),
        },
        "loss": LOSSES[settings.loss],
        "clip_grad_norm": settings.max_grad_norm or None,
        "device": "cuda",
        "dtype": settings.dtype,
        "enable_activation_checkpointing": settings.gradient_checkpointing != "off",
        "enable_activation_offloading": False,
        "compile": False,
        "metric_logger": {"_component_": "torchtune.training.metric_logging.DiskLogger", "log_dir": "${output_dir}/logs"},
        "log_every_n_steps": 10,
        "log_peak_memory_stats": True,
    }
    if adapters.part is not None:
        warmup = "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup"
        values["lr_scheduler"] = {"_component_": warmup, "num_warmup_steps": min(100, job.updates)}
        values["save_adapter_weights_only"] = True
    else:
        values["optimizer_in_bwd"] = False
    if job.gpus > 1:
        values["fsdp_reshard_after_forward"] = job.sharding.zero_stage == 3
        values["fsdp_cpu_offload"] = False
    return values


def _family(job: ExportJob, config: Mapping[str, Any]) -> str:
    """The builder's name. Raises InputError for an architecture that torchtune does not have in this form."""
    kind = str(config.get("model_type"))
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    scaled = isinstance(scaling, Mapping) and scaling.get("rope_type", scaling.get("type", "default")) not in ("default", None)
    tied = job.plan.request.spec.tie_word_embeddings
    if kind == "llama" and scaled and scaling.get("rope_type", scaling.get("type")) == "llama3":
        return "llama3_2" if tied else "llama3_1"
    plain = not scaled and not (tied and kind != "qwen2") and not config.get("attention_bias") and not config.get("mlp_bias")
    if kind == "llama" and plain:
        return "llama3" if int(config.get("vocab_size", 0)) > 100_000 else "llama2"
    if kind in ("mistral", "qwen2") and plain and not config.get("use_sliding_window"):
        return kind
    raise InputError(
        f"{NAME} has no builder for {job.plan.request.spec.id} ({kind}{', scaled rotary embeddings' if scaled else ''}"
        f"{', tied embeddings' if tied else ''}); export with --format trl or axolotl"
    )


def _model(job: ExportJob, adapters: Adapters, config: Mapping[str, Any], family: str) -> dict[str, Any]:
    spec = job.plan.request.spec
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    values: dict[str, Any] = {
        "_component_": f"torchtune.models.{family}.{'lora_' if adapters.part is not None else ''}{family}",
        "vocab_size": spec.vocab_size,
        "num_layers": spec.num_hidden_layers,
        "num_heads": spec.num_attention_heads,
        "num_kv_heads": spec.num_key_value_heads,
        "embed_dim": spec.hidden_size,
        "intermediate_dim": int(config["intermediate_size"]),
        "max_seq_len": spec.max_position_embeddings,
        "norm_eps": float(config.get("rms_norm_eps", 1e-6)),
    }
    base = config.get("rope_theta", scaling.get("rope_theta", 10000.0))
    if not (family == "llama2" and adapters.part is not None):
        values["rope_base"] = int(base)
    elif float(base) != 10000.0:
        raise InputError(f"{NAME}'s lora_llama2 has no rope_theta, and {spec.id} has {base}; export with --format trl")
    if family in ("llama3_1", "llama3_2"):
        values["scale_factor"] = int(scaling["factor"])
    if family == "qwen2":
        values["tie_word_embeddings"] = spec.tie_word_embeddings
    return values | (_lora(job, adapters) if adapters.part is not None else {})


def _lora(job: ExportJob, adapters: Adapters) -> dict[str, Any]:
    lora = adapters.lora
    if lora is None or adapters.saved or Lora(**{name: getattr(lora, name) for name in _OPTIONS}) != lora:
        raise InputError(f"{NAME} has no adapter like {job.method.name}; export a plan of lora or qlora, or --format trl")
    names = [*_ATTENTION, *_MLP] if lora.target_modules[0] == ALL_LINEAR else list(lora.target_modules)
    mlp = {name for name in names if name in _MLP}
    unknown = [name for name in names if name not in _ATTENTION and name not in _MLP]
    if unknown or mlp not in (set(), set(_MLP)):
        raise InputError(
            f"{NAME} adapts q_proj, k_proj, v_proj, o_proj, and all of the MLP or none of it, not {', '.join(names)}; change "
            "target_modules, or export with --format trl"
        )
    base = adapters.base
    if base is not None and base.quant_type != "nf4":
        raise InputError(f"{NAME} quantizes to nf4 alone, not {base.quant_type}; export a plan with quant_type=nf4")
    return {
        "lora_attn_modules": [_ATTENTION[name] for name in names if name in _ATTENTION],
        "apply_lora_to_mlp": bool(mlp),
        "apply_lora_to_output": False,
        "lora_rank": lora.r,
        "lora_alpha": float(lora.lora_alpha),
        "lora_dropout": float(lora.lora_dropout),
        "use_dora": lora.use_dora,
        "quantize_base": base is not None,
    }


def _tokenizer(job: ExportJob, family: str) -> dict[str, Any]:
    length = int(job.settings.seq_len)
    if family in ("llama2", "mistral"):
        component = f"torchtune.models.{family}.{family}_tokenizer"
        return {"_component_": component, "path": "checkpoint/tokenizer.model", "max_seq_len": length}
    if family == "qwen2":
        return {
            "_component_": "torchtune.models.qwen2_5.qwen2_5_tokenizer",
            "path": "checkpoint/vocab.json",
            "merges_file": "checkpoint/merges.txt",
            "max_seq_len": length,
        }
    component = "torchtune.models.llama3.llama3_tokenizer"
    return {"_component_": component, "path": "checkpoint/original/tokenizer.model", "max_seq_len": length}


def _model_type(family: str) -> str:
    return {"llama3_1": "LLAMA3", "llama3_2": "LLAMA3_2"}.get(family, family.upper())


def _dataset(job: ExportJob) -> dict[str, Any]:
    where = {"source": "json", "data_files": job.data.name} if job.data.local else {"source": job.data.name}
    packed = not job.settings.padded
    if job.data.style == "text":
        component = "torchtune.datasets.text_completion_dataset"
        return {"_component_": component, **where, "column": "text", "split": "train", "packed": packed}
    return {
        "_component_": "torchtune.datasets.chat_dataset",
        **where,
        "conversation_column": "messages",
        "conversation_style": "openai",
        "split": "train",
        "packed": packed,
    }


def _gaps(job: ExportJob, adapters: Adapters) -> tuple[str, ...]:
    gaps = [f"{NAME} runs its own model code, not transformers': activations differ from the plan's"]
    if not job.settings.padded:
        gaps.append(f"{NAME} packs with a mask of blocks (FlexAttention where the card has it), which the plan does not count")
    if adapters.part is not None and adapters.fp32 and job.settings.dtype != "fp32":
        gaps.append(f"{NAME} keeps adapters in {job.settings.dtype}, and the plan in fp32 (autocast_adapter_dtype=true)")
    if adapters.base is not None:
        gaps.append(
            f"{NAME} quantizes by torchao, and the plan by bitsandbytes (prepare_kbit={str(adapters.base.prepare_kbit).lower()})"
        )
    return tuple(gaps)


def _launch(job: ExportJob, adapters: Adapters) -> str:
    head = "".join(f"# {line}\n" for line in job.head(NAME, "launch.sh").splitlines())
    kind = "full_finetune" if adapters.part is None else "lora_finetune"
    spread = f"--nproc_per_node {job.gpus} {kind}_distributed" if job.gpus > 1 else f"{kind}_single_device"
    local = job.model.startswith("/")
    fetch = (
        f'ln -sfn "{job.model}" checkpoint'
        if local
        else f"tune download {job.model} --output-dir checkpoint --ignore-patterns ''"
    )
    alloc = "export PYTORCH_ALLOC_CONF=expandable_segments:True\n" if job.plan.request.expandable_segments else ""
    return (
        f'#!/usr/bin/env bash\n{head}set -euo pipefail\ncd "$(dirname "$0")"\n{alloc}{fetch}\n'
        "files=$(cd checkpoint && ls *.safetensors | paste -sd,)\n"
        f'tune run {spread} --config {CONFIG} checkpointer.checkpoint_files="[$files]" "$@"\n'
    )
