"""`TrainingArguments` of transformers: its keys, and what the Trainer makes of them.

Keys and defaults are those of transformers 5.23 (training_args.py, trainer.py); names that 4.x had are known too.
"""

from collections.abc import Mapping
from typing import Any

from tuneplan.planner.configs.optimizer_names import HF_OTHERS, read_optimizer
from tuneplan.planner.configs.section import Section
from tuneplan.planner.configs.sharding_keys import read_fsdp, read_parallelism
from tuneplan.planner.configs.table import Table, defaults, words
from tuneplan.planner.yaml_file import YamlFile

USED = {
    "per_device_train_batch_size": "micro-batch size",
    "gradient_accumulation_steps": "micro-batches of an update",
    "num_train_epochs": "passes over the data",
    "max_steps": "updates",
    "optim": "optimizer",
    "max_grad_norm": "clipping of gradients",
    "bf16": "autocast in bf16",
    "fp16": "autocast in fp16",
    "gradient_checkpointing": "gradient checkpointing",
    "gradient_checkpointing_kwargs": "kind of gradient checkpointing",
    "use_liger_kernel": "Liger's fused loss",
    "use_cache": "whether keys and values are kept",
    "torch_empty_cache_steps": "how often the allocator's cache is emptied",
    "per_device_eval_batch_size": "batch of an evaluation",
    "eval_strategy": "whether there are evaluations",
    "fsdp": "what GPUs split",
    "fsdp_config": "what GPUs split",
    "deepspeed": "what GPUs split",
    "parallelism_config": "degrees of parallelism",
    "use_cpu": "where it runs",
}
LOGGING = words(
    """logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen
    log_level log_level_replica disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id
    trackio_static_space_id logging_dir include_tokens_per_second skip_memory_metrics debug output_dir overwrite_output_dir"""
)
SAVING = words(
    """save_only_model save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint save_safetensors
    load_best_model_at_end metric_for_best_model greater_is_better resume_from_checkpoint ignore_data_skip
    restore_callback_states_from_checkpoint"""
)
HUB = words(
    """push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision push_to_hub_model_id
    push_to_hub_organization push_to_hub_token"""
)
SCHEDULE = words(
    """learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps warmup_ratio weight_decay adam_beta1 adam_beta2
    adam_epsilon average_tokens_across_devices"""
)
EVALUATION = words(
    """eval_steps eval_delay prediction_loss_only eval_on_start eval_do_concat_batches eval_use_gather_object
    eval_accumulation_steps include_for_metrics batch_eval_metrics bf16_full_eval fp16_full_eval do_train do_eval do_predict
    evaluation_strategy include_inputs_for_metrics predict_with_generate generation_max_length generation_num_beams
    generation_config sortish_sampler jit_mode_eval"""
)
DATA = words(
    """dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
    dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order remove_unused_columns label_names
    train_sampling_strategy length_column_name group_by_length accelerator_config dispatch_batches split_batches seed data_seed
    full_determinism"""
)
LAUNCH = words(
    """ddp_find_unused_parameters ddp_broadcast_buffers ddp_backend ddp_timeout local_rank ray_scope tpu_num_cores
    tpu_metrics_debug use_mps_device no_cuda mp_parameters past_index use_legacy_prediction_loop half_precision_backend
    fp16_backend fp16_opt_level use_ipex fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap torchdynamo"""
)
IRRELEVANT = {
    "logging": LOGGING,
    "saving: its memory is in the report's phase save": SAVING,
    "upload to the hub": HUB,
    "numbers of the update and its schedule": SCHEDULE,
    "evaluation keeps no activations": EVALUATION,
    "loading and order of data": DATA,
    "how processes are started": LAUNCH,
}
NOT_MODELLED = {
    "torch.compile fuses ops and keeps other tensors": words("torch_compile torch_compile_backend torch_compile_mode"),
    "which of Liger's layer kernels run": words("liger_kernel_config"),
    "noise on the embeddings, one more tensor of their size": words("neftune_noise_alpha"),
    "smoothed labels, one more pass over the logits": words("label_smoothing_factor"),
    "the batch is halved where memory runs out": words("auto_find_batch_size"),
    "weights that only some optimizers treat apart": words("optim_target_modules optim_args"),
    "DDP's bucket size; a bucket for all gradients is counted": words("ddp_bucket_cap_mb ddp_static_graph"),
    "TF32 products of fp32 tensors are faster": words("tf32"),
    "an optimizer beside optim": words("adafactor"),
}
RENAMED = {
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "use_liger": "use_liger_kernel",
}
TABLE = Table(USED, IRRELEVANT, NOT_MODELLED, RENAMED, defaults("transformers", "Seq2SeqTrainingArguments"))
LOSING_ONE = ("ddp_bucket_cap_mb",)


def read_training_arguments(section: Section, own: Mapping[str, Any], name: str, optimizer: str = "adamw_torch_fused") -> None:
    """Note what the arguments of a Trainer say.

    Args:
        section: with the file's keys.
        own: defaults of the class (a subclass has some of its own).
        name: of the class, for sources.
        optimizer: of `optim` where the file has none.
    """

    def default(key: str, fallback: Any) -> Any:
        value = own.get(key, fallback)
        return fallback if value is None else value

    section.fact("micro_batch_size", section.integer("per_device_train_batch_size", default("per_device_train_batch_size", 8)),
                 "per_device_train_batch_size", name)  # fmt: skip
    steps = section.integer("gradient_accumulation_steps", default("gradient_accumulation_steps", 1))
    section.fact("gradient_accumulation_steps", steps, "gradient_accumulation_steps", name)
    section.fact("max_grad_norm", max(0.0, section.number("max_grad_norm", 1.0) or 0.0), "max_grad_norm", name)
    section.fact("epochs", section.number("num_train_epochs", float(default("num_train_epochs", 3.0))), "num_train_epochs", name)
    updates = section.integer("max_steps", -1, least=-1)
    if updates is not None and updates > 0:
        section.fact("max_steps", updates, "max_steps", name)
    if isinstance(section.raw("optim"), str) or "optim" not in section:
        read_optimizer(section, "optim", optimizer, name, HF_OTHERS)
    _precision(section, own, name)
    read_checkpointing(section, "gradient_checkpointing", bool(default("gradient_checkpointing", False)), name)
    if section.flag("use_liger_kernel"):
        section.fact("loss", "liger", "use_liger_kernel")
        section.warn("use_liger_kernel", "of Liger's kernels the loss is counted; those of layers save more")
    section.fact("use_cache", section.flag("use_cache"), "use_cache", name)
    section.fact("empty_cache_steps", section.integer("torch_empty_cache_steps", 0, least=0), "torch_empty_cache_steps", name)
    _evaluation(section)
    if section.flag("use_cpu"):
        section.warn("use_cpu", "the file trains on a CPU, and figures are of a GPU")
    read_deepspeed(section, "deepspeed")
    read_fsdp(section, "fsdp", "fsdp_config")
    read_parallelism(section, "parallelism_config")


def _precision(section: Section, own: Mapping[str, Any], name: str) -> None:
    bf16, fp16 = section.flag("bf16"), section.flag("fp16")
    if bf16 and fp16:
        raise section.error("fp16", "fp16 and bf16 are both true, and the Trainer takes one of them. Remove one.")
    if "bf16" not in section and not fp16 and own.get("bf16", False) is None:
        section.facts.set("mixed_precision", "bf16", f"default of {name}", explicit=False)
        return
    key = "fp16" if fp16 else "bf16"
    section.fact("mixed_precision", "bf16" if bf16 else "fp16" if fp16 else "no", key, name)


def read_checkpointing(section: Section, key: str, default: bool, name: str, reentrant: bool = False) -> None:
    """Gradient checkpointing and its kind. `reentrant`: what the tool takes where the file says nothing."""
    on = section.flag(key, default)
    options = section.mapping(f"{key}_kwargs") or {}
    kind = options.get("use_reentrant", reentrant)
    if not isinstance(kind, bool):
        raise section.error(f"{key}_kwargs", "use_reentrant is neither true nor false. Write one of them.")
    section.fact("gradient_checkpointing", ("reentrant" if kind else "non-reentrant") if on else "off", key, name)
    for other in sorted(set(options) - {"use_reentrant"}):
        if options[other] not in (None, False):
            section.facts.warn(f"{section.source(f'{key}_kwargs')}: {other} is not modelled; whole layers are recomputed")


def read_deepspeed(section: Section, key: str) -> None:
    """A path of DeepSpeed's JSON, which is read after this file, or its content."""
    given = section.raw(key)
    if isinstance(given, str):
        section.facts.named.append((given, section.source(key)))
    elif given is not None:
        from tuneplan.planner.configs.deepspeed import read as read_content

        data = section.mapping(key) or {}
        lines = {path[1:]: line for path, line in section.file.lines.items() if path and path[0] == key}
        read_content(YamlFile(section.file.name, data, lines), section.facts, "deepspeed")


def _evaluation(section: Section) -> None:
    """An evaluation with a larger batch than training may be the run's peak."""
    strategy = section.raw("eval_strategy", section.data.get("evaluation_strategy", "no"))
    batch = section.integer("per_device_eval_batch_size", 8)
    trained = section.facts.get("micro_batch_size", 8)
    if strategy not in ("no", False, None) and batch is not None and batch > trained:
        section.facts.warn(
            f"evaluation runs batches of {batch}, training of {trained}: its logits are not counted, and may be the peak"
        )
