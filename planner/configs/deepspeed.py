"""DeepSpeed's JSON: stage, offload, precision, batches; "auto" takes what the Trainer says.

Keys are those of deepspeed 0.19.8 (runtime/constants.py, runtime/zero/config.py); it ignores unknown keys at the top, and
refuses those in zero_optimization.
"""

from typing import Any

from tuneplan.planner.configs.facts import Facts
from tuneplan.planner.configs.section import Section
from tuneplan.planner.configs.table import Table, known_keys, version, words
from tuneplan.planner.secrets import shown_key
from tuneplan.planner.yaml_file import YamlFile

AUTO = "auto"
TOP = Table(
    {
        "train_batch_size": "sequences of an update on all GPUs",
        "train_micro_batch_size_per_gpu": "micro-batch size",
        "gradient_accumulation_steps": "micro-batches of an update",
        "gradient_clipping": "clipping of gradients",
        "bf16": "16-bit weights with fp32 copies",
        "fp16": "16-bit weights with fp32 copies",
        "zero_optimization": "what is split",
        "optimizer": "optimizer",
        "tensor_parallel": "tensor parallelism",
    },
    {
        "logging and profiling": words(
            """steps_per_print wall_clock_breakdown memory_breakdown dump_state flops_profiler comms_logger tensorboard wandb
            csv_monitor comet log_level profiler"""
        ),
        "numbers of the update and its schedule": words("scheduler prescale_gradients gradient_predivide_factor"),
        "saving": words("checkpoint nebula data_types"),
        "which optimizers ZeRO accepts": words("zero_allow_untested_optimizer zero_force_ds_cpu_optimizer"),
        "housekeeping": words("disable_python_gc dataloader_drop_last disable_allgather vocabulary_size aio"),
        "which size is tried by the launcher": words("elasticity autotuning"),
        "data of a curriculum": words("curriculum_learning data_efficiency"),
    },
    {
        "automatic mixed precision of apex or torch": words("amp torch_autocast"),
        "the dtype that gradients travel in": words("communication_data_type seq_parallel_communication_data_type"),
        "checkpoints split over GPUs or moved to the host": words("activation_checkpointing"),
        "sparse gradients": words("sparse_gradients sparse_attention"),
        "compression and other forms of training": words(
            "compression_training progressive_layer_drop eigenvalue quantize_training hybrid_engine compile gradient_allreduce_op"
        ),
        "pipeline parallelism": words("pipeline pipeline_parallel_size"),
        "sequence parallelism": words("sequence_parallel_size"),
    },
    {"bfloat16": "bf16"},
    {"activation_checkpointing": {}, "gradient_allreduce_op": "mean"},
)
_BUCKETS = words(
    """allgather_bucket_size stage3_model_persistence_threshold model_persistence_threshold stage3_max_live_parameters
    max_live_parameters overlap_comm contiguous_gradients reduce_scatter allgather_partitions round_robin_gradients
    stage3_module_granularity_threshold module_granularity_threshold use_multi_rank_bucket_allreduce"""
)
ZERO = Table(
    {
        "stage": "what is split",
        "offload_optimizer": "optimizer states in host memory",
        "offload_param": "weights in host memory",
        "reduce_bucket_size": "bucket of gradients",
        "cpu_offload": "optimizer states in host memory",
        "cpu_offload_param": "weights in host memory",
    },
    {
        "when and in which pieces GPUs exchange": _BUCKETS,
        "how weights are loaded and saved": words(
            """stage3_gather_16bit_weights_on_model_save gather_16bit_weights_on_model_save load_from_fp32_weights
            stage3_gather_fp16_weights_on_model_save elastic_checkpoint pipeline_loading_checkpoint"""
        ),
        "housekeeping": words(
            """ignore_unused_parameters legacy_stage1 parameter_alignment memory_efficient_linear override_module_apply
            log_trace_cache_warnings enable_sanity_checks compute_grad_norm cpu_offload_use_pin_memory leaf_module
            allgather_sequential stage3_allgather_sequential use_all_reduce_for_fetch_params
            stage3_use_all_reduce_for_fetch_params"""
        ),
    },
    {
        "ZeRO++ (weights and gradients in 8 bits, a second split inside a node)": words(
            "zero_hpz_partition_size zero_quantized_weights zero_quantized_nontrainable_weights zero_quantized_gradients"
        ),
        "updates that overlap with the next step": words("zenflow"),
        "where Muon keeps its momentum": words("save_muon_momentum_buffer_in_memory"),
        "how much is gathered ahead and kept whole": words(
            """stage3_prefetch_bucket_size prefetch_bucket_size stage3_param_persistence_threshold param_persistence_threshold
            stage3_max_reuse_distance max_reuse_distance sub_group_size"""
        ),
        "MiCS": words("mics_shard_size mics_hierarchical_params_gather"),
    },
    {},
    {
        "zero_hpz_partition_size": 1,
        "stage3_prefetch_bucket_size": 50_000_000,
        "prefetch_bucket_size": 50_000_000,
        "stage3_param_persistence_threshold": 100_000,
        "param_persistence_threshold": 100_000,
        "stage3_max_reuse_distance": 1_000_000_000,
        "max_reuse_distance": 1_000_000_000,
        "sub_group_size": 1_000_000_000,
    },
)
OPTIMIZERS = {"adam": "adamw_fused", "adamw": "adamw_fused", "sgd": "sgd", "lion": "lion"}
"""DeepSpeed's FusedAdam holds what torch's fused AdamW holds (ops/adam/fused_adam.py)."""
OTHERS = (
    "adagrad",
    "cpuadam",
    "fusedadam",
    "lamb",
    "onebitadam",
    "onebitlamb",
    "zerooneadam",
    "muadam",
    "muadamw",
    "musgd",
    "muon",
)


def read(file: YamlFile, facts: Facts, kind: str) -> None:
    """Note what the file says. Raises InputError with file and line."""
    section = Section(file, (), file.data, TOP, facts, "DeepSpeed ignores it")
    facts.stack(f"deepspeed {version('deepspeed')}")
    facts.set("engine", "deepspeed", f"{file.name}")
    for key, fact in (
        ("train_micro_batch_size_per_gpu", "micro_batch_size"),
        ("gradient_accumulation_steps", "gradient_accumulation_steps"),
        ("train_batch_size", "global_batch_size"),
    ):
        if section.raw(key) not in (None, AUTO):
            section.fact(fact, section.integer(key), key)
    if section.raw("gradient_clipping") not in (None, AUTO):
        section.fact("max_grad_norm", section.number("gradient_clipping"), "gradient_clipping")
    elif "gradient_clipping" not in section:
        facts.set("max_grad_norm", 0.0, "default of DeepSpeed", explicit=False)
    _precision(section)
    _zero(section)
    _optimizer(section)
    if section.mapping("tensor_parallel") is not None:
        degree = (section.mapping("tensor_parallel") or {}).get("autotp_size", 1)
        if degree not in (0, 1, AUTO):
            facts.set("tensor_parallel", degree, section.source("tensor_parallel"))
    section.finish()


def _precision(section: Section) -> None:
    for key in ("bf16", "fp16"):
        given = section.mapping(key)
        if given is None:
            continue
        below = Section(section.file, (key,), given, Table({"enabled": "16-bit weights with fp32 copies"}), section.facts)
        enabled = given.get("enabled", False)
        known = known_keys("deepspeed")["DeepSpeedBF16Config" if key == "bf16" else "DeepSpeedFP16Config"]
        plain = {
            "scaling of the loss": words(
                """loss_scale initial_scale_power loss_scale_window hysteresis consecutive_hysteresis min_loss_scale auto_cast
                immediate_grad_update check_grad_overflow opt_level"""
            )
        }
        rest = tuple(name for name in known if name != "enabled" and name not in plain["scaling of the loss"])
        below.table = Table({"enabled": f"{key} weights with fp32 copies"}, plain, {"copies and states in 16 bits": rest})
        below.raw("enabled")
        if enabled == AUTO:
            pass
        elif below.flag("enabled"):
            section.facts.set("mixed_precision", key, below.source("enabled"))
        below.finish()


def _zero(section: Section) -> None:
    facts = section.facts
    data = section.mapping("zero_optimization")
    if data is None:
        facts.set("zero_stage", 0, f"default of DeepSpeed in {section.file.name}", explicit=False)
        return
    below = Section(section.file, ("zero_optimization",), data, ZERO, facts)
    stage = 0 if below.raw("stage") == AUTO else below.integer("stage", 0, least=0)
    if stage is not None and stage > 3:
        raise below.error("stage", f"stage {stage} does not exist. Write 0, 1, 2 or 3.")
    below.fact("zero_stage", stage, "stage", "DeepSpeed")
    if below.raw("reduce_bucket_size") == AUTO:
        facts.set("reduce_bucket_size", AUTO, below.source("reduce_bucket_size"))
    elif "reduce_bucket_size" in below:
        below.fact("reduce_bucket_size", below.integer("reduce_bucket_size"), "reduce_bucket_size")
    for key, old, fact in (
        ("offload_optimizer", "cpu_offload", "offload_optimizer"),
        ("offload_param", "cpu_offload_param", "offload_params"),
    ):
        device = _device(below, key)
        if device is not None:
            facts.set(fact, device, below.source(key))
        if below.raw(old) is True:
            facts.set(fact, "cpu", below.source(old))
    below.finish()


def _device(section: Section, key: str) -> str | None:
    """Cpu or nvme; None where nothing is moved."""
    data = section.mapping(key)
    if data is None:
        return None
    moves = "nvme_path buffer_count buffer_size max_in_cpu pin_memory pipeline_read pipeline_write fast_init pipeline"
    table = Table(
        {"device": "where"},
        {"how it moves": words(moves)},
        {"a share that stays on the GPU": words("ratio"), "SuperOffload": words("super_offload cpuadam_cores_perc")},
        {}, {"ratio": 1.0, "cpuadam_cores_perc": 0.8},
    )  # fmt: skip
    below = Section(section.file, (*section.path, key), data, table, section.facts)
    device = below.choice("device", ("none", "cpu", "nvme", AUTO), "none")
    below.finish()
    return None if device in ("none", AUTO) else device


def _optimizer(section: Section) -> None:
    data: dict[str, Any] | None = section.mapping("optimizer")
    if data is None:
        return
    table = Table({"type": "optimizer"}, {"numbers of the update": words("params legacy_fusion")})
    below = Section(section.file, ("optimizer",), data, table, section.facts)
    name = (below.text("type") or "").lower()
    if name and name not in OPTIMIZERS:
        if name not in OTHERS:
            below.warn("type", f"{shown_key(name)} is looked up in torch by DeepSpeed; figures are those of adamw")
        else:
            below.warn("type", f"{name} is not modelled; figures are those of adamw_fused")
    below.fact("optimizer", OPTIMIZERS.get(name, "adamw_fused" if name in OTHERS else "adamw"), "type", "DeepSpeed")
    below.finish()
