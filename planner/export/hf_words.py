"""The planner's words in those of transformers' TrainingArguments, which TRL, axolotl and LLaMA-Factory share."""

from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.export.accelerate import mixed_precision
from tuneplan.planner.export.job import ExportJob

OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adamw_fused": "adamw_torch_fused",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_32bit": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "sgd": "sgd",
    "adafactor": "adafactor",
    "lion": "lion_32bit",
}
"""`optim` of transformers 5.23 (training_args.py OptimizerNames) that builds the same optimizer."""

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
ATTENTIONS = {"eager": "eager", "sdpa": "sdpa", "flash": "flash_attention_2"}
VERSIONS = {
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "peft": "0.21.2",
    "accelerate": "1.15.0",
    "bitsandbytes": "0.50.2",
    "trl": "1.16.0",
    "datasets": "5.2.0",
    "deepspeed": "0.19.8",
}
"""Of the stack that the ledger mirrors, and of the packages that the exported files were tried with."""


def optimizer(job: ExportJob, tool: str) -> str:
    """`optim`. Raises InputError for an optimizer that the Trainer does not build."""
    name = job.plan.request.optimizer.name
    if name not in OPTIMIZERS:
        raise InputError(
            f"{tool} has no optimizer like {name}; export a plan with --optimizer {' or '.join(list(OPTIMIZERS)[:3])}"
        )
    return OPTIMIZERS[name]


def mixed(job: ExportJob, engine: str) -> dict[str, bool]:
    """`bf16` and `fp16`, which turn autocast on, or FSDP2's mixed precision."""
    chosen = mixed_precision(job, engine)
    return {"bf16": chosen == "bf16", "fp16": chosen == "fp16"}


def checkpointing(job: ExportJob) -> dict[str, Any]:
    """`gradient_checkpointing` and its options."""
    how = job.settings.gradient_checkpointing
    if how == "off":
        return {"gradient_checkpointing": False}
    return {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": how == "reentrant"}}


FILE_LOSSES = ("eager", "liger")
"""Losses that axolotl and LLaMA-Factory can be told in their YAML file."""


def refuse_loop(job: ExportJob, tool: str) -> None:
    """Raise InputError for what no Trainer does."""
    settings = job.settings
    if settings.keep_outputs:
        raise InputError(f"{tool} drops the model's outputs after the loss; export a plan without --keep-outputs")
    if settings.use_cache:
        raise InputError(f"{tool} turns the cache of keys and values off; export a plan without --use-cache")


def refuse_model_options(job: ExportJob, tool: str) -> None:
    """Raise InputError for a loss or a dropout that a tool configured by one YAML file has no key for."""
    settings = job.settings
    if settings.loss not in FILE_LOSSES:
        raise InputError(
            f"{tool} cannot compute the loss {settings.loss!r} of the plan; export a plan with --loss {' or '.join(FILE_LOSSES)}"
        )
    if settings.attention_dropout:
        raise InputError(f"{tool} has no option for the attention's dropout; leave --attention-dropout out")


def requirements(*names: str) -> str:
    """Pinned lines of a requirements.txt."""
    return "".join(f"{name}=={VERSIONS[name]}\n" for name in names)
