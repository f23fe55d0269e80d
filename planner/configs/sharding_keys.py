"""What GPUs split, as FSDP's and accelerate's keys say it: one reading for the Trainer, accelerate and axolotl."""

from typing import Any

from tuneplan.planner.configs.facts import Facts
from tuneplan.planner.configs.section import Section
from tuneplan.planner.configs.table import Table, words
from tuneplan.planner.secrets import shown_key

STRATEGIES = {
    "full_shard": 3,
    "shard_grad_op": 2,
    "no_shard": 0,
    "hybrid_shard": 3,
    "hybrid_shard_zero2": 2,
    "1": 3,
    "2": 2,
    "3": 0,
    "4": 3,
    "5": 2,
}
"""FSDP's strategies as the ZeRO stage that splits the same (torch distributed/fsdp/api.py ShardingStrategy)."""

FSDP_USED = {
    "version": "FSDP 1 or 2",
    "sharding_strategy": "what is split",
    "reshard_after_forward": "what is split",
    "offload_params": "weights live in host memory",
    "activation_checkpointing": "gradient checkpointing",
}
FSDP_TABLE = Table(
    FSDP_USED,
    {
        "which modules are units: a decoder layer each is counted": words(
            "auto_wrap_policy transformer_layer_cls_to_wrap min_num_params"
        ),
        "how weights are loaded and saved": words(
            "state_dict_type final_state_dict_type cpu_ram_efficient_loading sync_module_states"
        ),
        "form of the parameters": words("use_orig_params"),
        "pinned host memory": words("cpu_offload_pin_memory"),
        "TPUs": words("xla xla_fsdp_v2 xla_fsdp_grad_ckpt xla_fsdp_settings tpu"),
    },
    {
        "how early the next unit is gathered": words(
            "backward_prefetch forward_prefetch limit_all_gathers backward_prefetch_policy"
        ),
        "FSDP's own mixed precision": words("mixed_precision_policy"),
        "checkpoints that are moved to the host": words("activation_checkpointing_offload"),
        "modules that are not split": words("ignored_modules"),
    },
    {"cpu_offload": "offload_params", "fsdp_version": "version"},
    {"backward_prefetch": "BACKWARD_PRE"},
)


def fsdp_section(section: Section, key: str) -> Section | None:
    """The section of FSDP's options; keys may begin with fsdp_."""
    data = section.mapping(key)
    if not data:
        return None
    table = FSDP_TABLE
    renamed = {**table.renamed, **{f"fsdp_{name}": name for name in FSDP_TABLE.names() if not name.startswith("fsdp_")}}
    renamed["fsdp_version"] = "version"
    return Section(
        section.file, (*section.path, key), data,
        Table(table.used, table.irrelevant, table.not_modelled, renamed, table.defaults), section.facts, section.unknown,
    )  # fmt: skip


def read_fsdp(section: Section, key: str, config_key: str, default_version: int = 2) -> None:
    """`fsdp` ("full_shard auto_wrap offload", true, or a list) and its options."""
    given = section.raw(key)
    options = section.raw(config_key)
    if isinstance(options, str):
        section.facts.warn(f"{section.source(config_key)} names a file; give it with --config too, or write its keys here")
    words_given = given.split() if isinstance(given, str) else given if isinstance(given, list) else []
    known = {*STRATEGIES, "auto_wrap", "offload"}
    for word in words_given:
        if not isinstance(word, str) or word not in known:
            raise section.error(key, f"{shown_key(str(word))} is no option of FSDP. Known are {', '.join(sorted(known)[5:])}.")
    below = fsdp_section(section, config_key) if not isinstance(options, str) else None
    if not given:
        if below is not None:
            below.table = Table({}, {"fsdp is not switched on": below.table.names()})
            below.finish()
        return
    stage = next((STRATEGIES[word] for word in words_given if word in STRATEGIES), None)
    set_fsdp(section.facts, section.source(key), stage, offload="offload" in words_given)
    if "hybrid_shard" in given or "hybrid_shard_zero2" in given:
        section.facts.set("hybrid", True, section.source(key))
    if below is not None:
        read_fsdp_options(below, default_version, stage)
        below.finish()
    else:
        section.facts.set("fsdp_version", default_version, "default", False)


def set_fsdp(facts: Facts, source: str, stage: int | None, offload: bool) -> None:
    """Note that FSDP runs."""
    facts.set("engine", "fsdp", source)
    facts.set("zero_stage", 3 if stage is None else stage, source, explicit=stage is not None)
    if offload:
        facts.set("offload_params", True, source)


def read_fsdp_options(section: Section, default_version: int, stage: int | None) -> None:
    """The options below `fsdp_config`."""
    facts = section.facts
    version = section.integer("version", default_version)
    facts.set("fsdp_version", version, section.source("version") if "version" in section else "default", "version" in section)
    if "sharding_strategy" in section:
        facts.set("zero_stage", _strategy(section, "sharding_strategy"), section.source("sharding_strategy"))
    if "reshard_after_forward" in section:
        given = section.raw("reshard_after_forward")
        if isinstance(given, bool) or str(given).lower() in ("true", "false"):
            facts.set("zero_stage", 3 if str(given).lower() == "true" else 2, section.source("reshard_after_forward"))
        else:
            facts.set("zero_stage", _strategy(section, "reshard_after_forward"), section.source("reshard_after_forward"))
    if section.flag("offload_params"):
        facts.set("offload_params", True, section.source("offload_params"))
    if section.flag("activation_checkpointing"):
        facts.set("gradient_checkpointing", "non-reentrant", section.source("activation_checkpointing"))


def _strategy(section: Section, key: str) -> int:
    value = str(section.raw(key)).lower()
    if value not in STRATEGIES:
        raise section.error(key, f"{shown_key(value)} is no strategy of FSDP. Write such as FULL_SHARD or SHARD_GRAD_OP.")
    if value.startswith("hybrid") or value in ("4", "5"):
        section.facts.set("hybrid", True, section.source(key))
    return STRATEGIES[value]


DEGREES = {
    "dp_shard_size": "data_shard",
    "dp_replicate_size": "data_replicate",
    "tp_size": "tensor_parallel",
    "cp_size": "context_parallel",
    "sp_size": "ulysses",
}


def read_parallelism(section: Section, key: str) -> None:
    """Accelerate's `parallelism_config`: degrees of each kind of parallelism."""
    data = section.mapping(key)
    if data is None:
        return
    prefix = f"{key}_"
    rest = words("cp_backend cp_comm_strategy sp_attn_implementation sp_backend sp_seq_length sp_seq_length_is_variable")
    table = Table({name: f"degree: {what}" for name, what in DEGREES.items()}, {"how a sequence is split": rest}, {},
                  {prefix + name: name for name in (*DEGREES, *rest)})  # fmt: skip
    below = Section(section.file, (*section.path, key), data, table, section.facts, section.unknown)
    for name, what in DEGREES.items():
        degree: Any = below.integer(name, 1, least=-1)
        if degree and degree > 1:
            section.facts.set(what, degree, below.source(name))
    below.finish()
