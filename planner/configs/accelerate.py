"""Files of `accelerate config`: how many processes, and what they split.

Keys and defaults are those of accelerate 1.15 (commands/config/config_args.py, commands/launch.py); an unknown key is an error
there too.
"""

from typing import Any

from tuneplan.planner.configs.facts import Facts
from tuneplan.planner.configs.section import Section
from tuneplan.planner.configs.sharding_keys import fsdp_section, read_fsdp_options, read_parallelism, set_fsdp
from tuneplan.planner.configs.table import Table, version, words
from tuneplan.planner.yaml_file import YamlFile

TABLE = Table(
    {
        "num_processes": "number of GPUs",
        "num_machines": "number of machines",
        "distributed_type": "what the GPUs split",
        "mixed_precision": "autocast, or 16-bit weights where they are split",
        "fsdp_config": "FSDP",
        "deepspeed_config": "DeepSpeed",
        "parallelism_config": "degrees of parallelism",
        "use_cpu": "where it runs",
    },
    {
        "how processes are started": words(
            """compute_environment debug machine_rank gpu_ids main_process_ip main_process_port rdzv_backend
            same_network main_training_function enable_cpu_affinity mpirun_config command_file commands ipex_config"""
        ),
        "TPUs": words("tpu_name tpu_zone tpu_use_cluster tpu_use_sudo tpu_vm tpu_env downcast_bf16"),
    },
    {
        "training in fp8": words("fp8_config"),
        "Megatron-LM": words("megatron_lm_config"),
        "torch.compile fuses ops and keeps other tensors": words("dynamo_config"),
    },
)
DEEPSPEED_TABLE = Table(
    {
        "zero_stage": "what is split",
        "offload_optimizer_device": "optimizer states in host memory",
        "offload_param_device": "weights in host memory",
        "gradient_accumulation_steps": "micro-batches of an update",
        "gradient_clipping": "clipping of gradients",
        "deepspeed_config_file": "a file of DeepSpeed",
    },
    {
        "how processes are started": words(
            "deepspeed_exclusion_filter deepspeed_hostfile deepspeed_inclusion_filter deepspeed_multinode_launcher"
        ),
        "how weights are loaded and saved": words("zero3_init_flag zero3_save_16bit_model"),
        "where the disk is": words("offload_optimizer_nvme_path offload_param_nvme_path"),
    },
    {"experts over several GPUs": words("deepspeed_moe_layer_cls_names")},
)
KINDS = ("NO", "MULTI_GPU", "FSDP", "DEEPSPEED", "MULTI_CPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU", "TPU", "XLA",
         "MEGATRON_LM", "MULTI_SDAA", "MULTI_MUSA", "MULTI_NEURON")  # fmt: skip


def read(file: YamlFile, facts: Facts, kind: str) -> None:
    """Note what the file says. Raises InputError with file and line."""
    section = Section(file, (), file.data, TABLE, facts)
    facts.stack(f"accelerate {version('accelerate')}")
    engine = section.choice("distributed_type", KINDS, "NO") or "NO"
    processes = section.integer("num_processes", -1, least=-1)
    if engine in ("NO", "no"):
        facts.set("data_parallel", 1, section.source("distributed_type"), "distributed_type" in section)
    elif processes is not None and processes > 0:
        section.fact("data_parallel", processes, "num_processes")
    precision = section.choice("mixed_precision", ("no", "fp16", "bf16", "fp8"), None)
    if section.raw("mixed_precision") is False:
        precision = "no"
    section.fact("machines", section.integer("num_machines", 1), "num_machines", "accelerate")
    if precision is not None:
        section.fact("launch_precision", precision, "mixed_precision")
    if section.flag("use_cpu"):
        section.warn("use_cpu", "the file trains on a CPU, and figures are of a GPU")
    _compile(section)
    _fsdp(section, engine == "FSDP")
    _deepspeed(section, engine == "DEEPSPEED")
    if engine == "MEGATRON_LM":
        section.warn("distributed_type", "Megatron-LM is not modelled; figures are those of plain data parallelism")
    read_parallelism(section, "parallelism_config")
    section.finish()


def _compile(section: Section) -> None:
    """A compiler that is named and is NO is none."""
    given: Any = section.data.get("dynamo_config")
    if isinstance(given, dict) and str(given.get("dynamo_backend", "NO")).upper() in ("NO", "FALSE"):
        section.skipped.add("dynamo_config")
        section.account("dynamo_config", "irrelevant", "at its default: no compiler")


def _fsdp(section: Section, runs: bool) -> None:
    below = fsdp_section(section, "fsdp_config")
    if runs:
        set_fsdp(section.facts, section.source("distributed_type"), None, offload=False)
    if below is None:
        return
    if runs:
        read_fsdp_options(below, 1, None)
    else:
        below.table = Table({}, {"distributed_type is not FSDP": (*below.table.names(), *below.data)})
    below.finish()


def _deepspeed(section: Section, runs: bool) -> None:
    data = section.mapping("deepspeed_config")
    facts = section.facts
    if runs:
        facts.set("engine", "deepspeed", section.source("distributed_type"))
    if not data:
        return
    below = Section(section.file, ("deepspeed_config",), data, DEEPSPEED_TABLE, facts)
    if not runs:
        below.table = Table({}, {"distributed_type is not DEEPSPEED": (*DEEPSPEED_TABLE.names(), *data)})
        below.finish()
        return
    stage = below.integer("zero_stage", 2, least=0)
    if stage is not None and stage > 3:
        raise below.error("zero_stage", f"stage {stage} does not exist. Write 0, 1, 2 or 3.")
    path = below.text("deepspeed_config_file")
    if path is not None:
        facts.named.append((path, below.source("deepspeed_config_file")))
    else:
        below.fact("zero_stage", stage, "zero_stage", "accelerate")
    steps = below.raw("gradient_accumulation_steps")
    if steps not in (None, "auto"):
        below.fact("gradient_accumulation_steps", below.integer("gradient_accumulation_steps"), "gradient_accumulation_steps")
    clipping = below.raw("gradient_clipping")
    if clipping not in (None, "auto"):
        below.fact("max_grad_norm", below.number("gradient_clipping"), "gradient_clipping")
    for key, fact in (("offload_optimizer_device", "offload_optimizer"), ("offload_param_device", "offload_params")):
        device = below.choice(key, ("none", "cpu", "nvme"), "none")
        if device != "none":
            facts.set(fact, device, below.source(key))
    below.finish()
