"""Configuration of `accelerate launch`, the same as environment variables for torchrun, and DeepSpeed's own file.

Keys are those of accelerate 1.15 (commands/config/config_args.py, utils/dataclasses.py) and DeepSpeed 0.19 (runtime/config.py).
"""

import json
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.export.job import ExportJob
from tuneplan.planner.methods.quantized_base import QuantizedBase

ALONE, DDP, FSDP, DEEPSPEED = "none", "ddp", "fsdp", "deepspeed"
ENGINES = (ALONE, DDP, FSDP, DEEPSPEED)
DEEPSPEED_FILE = "deepspeed.json"
ACCELERATE_FILE = "accelerate.yaml"


def engine_of(job: ExportJob, asked: str | None = None) -> str:
    """Which engine runs a plan; FSDP2 splits where the plan splits weights or gradients, unless DeepSpeed is asked for.

    Raises:
        InputError: an engine that cannot do what the plan says.
    """
    stage, settings = job.sharding.zero_stage, job.settings
    quantized = any(isinstance(part, QuantizedBase) for part in job.method.parts)
    master = settings.precision == "master-weights"
    planned = job.sharding.engine_used
    chosen = ALONE if job.gpus == 1 else planned
    if stage == 1 or (master and chosen in (ALONE, DDP)):
        chosen = DEEPSPEED
    if asked is not None:
        if asked in (ALONE, DDP) and (stage or asked == ALONE) and job.gpus > 1:
            raise InputError(f"engine {asked} splits nothing, and the plan is {job.sharding.label}; use fsdp or deepspeed")
        if asked == FSDP and (stage == 1 or job.gpus == 1):
            raise InputError(f"FSDP2 has no {job.sharding.label}; use another engine, or a plan with --zero-stage 2 or 3")
        if asked in (ALONE, DDP) and master:
            raise InputError(
                f"engine {asked} keeps no fp32 master weights beside 16-bit weights; use deepspeed, or --precision pure"
            )
        chosen = asked
    if chosen == DEEPSPEED:
        _check_deepspeed(job, master, quantized)
    if chosen == FSDP and settings.precision == "autocast":
        raise InputError(
            f"accelerate keeps trained weights in fp32 where FSDP2 mixes precisions, and the plan keeps them in {settings.dtype} "
            "(precision autocast); export a plan with --precision pure, or with --zero-stage 0"
        )
    if chosen == FSDP and quantized:
        raise InputError(
            "FSDP2 cannot split bitsandbytes' packed weights, and the plan is "
            f"{job.method.name} with {job.sharding.label}; export a plan with --zero-stage 0"
        )
    return chosen


def _check_deepspeed(job: ExportJob, master: bool, quantized: bool) -> None:
    if job.settings.precision == "pure" and job.settings.dtype != "fp32":
        raise InputError(
            f"{job.sharding.label} in pure {job.settings.dtype} cannot be exported: DeepSpeed keeps fp32 master weights, and "
            "FSDP2 has no ZeRO-1; use --precision master-weights, or --zero-stage 0, 2 or 3"
        )
    if quantized and job.sharding.zero_stage == 3:
        raise InputError("DeepSpeed cannot split bitsandbytes' packed weights; export a plan with --zero-stage 0, 1 or 2")
    kept = any(getattr(part, "autocast_adapter_dtype", False) for part in job.method.parts)
    if master and kept:
        raise InputError(
            "DeepSpeed casts adapters to 16 bits and keeps them in fp32 in its optimizer, and the plan has "
            "autocast_adapter_dtype=true; export a plan with autocast_adapter_dtype=false"
        )


def accelerate_config(job: ExportJob, engine: str) -> dict[str, Any]:
    """Contents of accelerate.yaml."""
    kinds = {ALONE: "NO", DDP: "MULTI_GPU", FSDP: "FSDP", DEEPSPEED: "DEEPSPEED"}
    values: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": kinds[engine],
        "machine_rank": 0,
        "main_training_function": "main",
        "num_machines": 1,
        "num_processes": job.gpus,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": False,
    }
    if engine == DEEPSPEED:
        values["deepspeed_config"] = {
            "deepspeed_config_file": DEEPSPEED_FILE,
            "zero3_init_flag": job.sharding.zero_stage == 3,
        }
        return values
    values["mixed_precision"] = mixed_precision(job, engine)
    if engine == FSDP:
        values["fsdp_config"] = {
            "fsdp_version": 2,
            "fsdp_reshard_after_forward": job.sharding.zero_stage == 3,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_activation_checkpointing": False,
            "fsdp_cpu_ram_efficient_loading": True,
            "fsdp_offload_params": False,
            "fsdp_state_dict_type": "FULL_STATE_DICT",
        }
    return values


def mixed_precision(job: ExportJob, engine: str) -> str:
    """Of accelerate: "no" where the plan has no autocast; FSDP2 keeps fp32 master weights by mixing precisions."""
    if engine == FSDP and job.settings.precision == "master-weights":
        return job.settings.dtype
    return job.settings.autocast or "no"


def torchrun_environment(job: ExportJob, engine: str) -> dict[str, str]:
    """What `accelerate launch` sets for the same configuration, so that torchrun alone can start it."""
    if engine == FSDP:
        return {
            "ACCELERATE_USE_FSDP": "true",
            "ACCELERATE_MIXED_PRECISION": mixed_precision(job, engine),
            "FSDP_VERSION": "2",
            "FSDP_RESHARD_AFTER_FORWARD": str(job.sharding.zero_stage == 3).lower(),
            "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
            "FSDP_ACTIVATION_CHECKPOINTING": "false",
            "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
            "FSDP_OFFLOAD_PARAMS": "false",
            "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        }
    if engine == DEEPSPEED:
        zero3 = str(job.sharding.zero_stage == 3).lower()
        return {
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_CONFIG_FILE": DEEPSPEED_FILE,
            "ACCELERATE_DEEPSPEED_ZERO3_INIT": zero3,
        }
    return {}


def deepspeed_config(job: ExportJob) -> dict[str, Any]:
    """Contents of deepspeed.json; the optimizer is the script's own."""
    settings, stage = job.settings, job.sharding.zero_stage
    zero: dict[str, Any] = {"stage": stage}
    if stage >= 2:
        zero |= {"overlap_comm": True, "contiguous_gradients": True}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    half = {"bf16": {"enabled": settings.dtype == "bf16"}, "fp16": {"enabled": settings.dtype == "fp16"}}
    return {
        "train_micro_batch_size_per_gpu": int(settings.micro_batch_size),
        "gradient_accumulation_steps": job.accumulation,
        "gradient_clipping": settings.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
        **half,
    }


def deepspeed_text(job: ExportJob) -> str:
    """deepspeed.json as text; JSON has no comments, so the plan is in the other files."""
    return json.dumps(deepspeed_config(job), indent=2) + "\n"


def gaps_of(job: ExportJob, engine: str) -> tuple[str, ...]:
    """What an engine does otherwise than the plan says."""
    if engine == DEEPSPEED and job.sharding.engine_used != DEEPSPEED:
        return (
            "DeepSpeed holds buckets beside its states (reduce_bucket_size and allgather_bucket_size, 5e8 elements each by "
            "default) that the plan does not count",
        )
    return ()
