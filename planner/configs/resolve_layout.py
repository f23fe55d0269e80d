"""How the run is spread over GPUs: what the files' engines, degrees and offloads come to together."""

from typing import Any

from tuneplan.planner.configs.facts import Facts
from tuneplan.planner.errors import InputError
from tuneplan.planner.models.config import ConfigReader

DEGREES = ("tensor_parallel", "context_parallel", "pipeline_parallel")
"""Facts that are options too, and that data parallelism shares the GPUs with."""


def ranks_of(facts: Facts) -> int | None:
    """Ranks of data parallelism: all GPUs, less what other degrees take of them."""
    whole = facts.get("data_parallel")
    if whole is None:
        return int(facts.get("data_shard")) * int(facts.get("data_replicate", 1)) if facts.has("data_shard") else None
    others = 1
    for degree in DEGREES:
        others *= facts.get(degree, 1)
    if whole % others:
        raise InputError(
            f"{facts.source('data_parallel')}: {whole} GPUs cannot be split by degrees of {others}. Correct one of them"
        )
    return int(whole // others)


def _degrees(facts: Facts, options: dict[str, Any], sources: dict[str, str]) -> None:
    """Other kinds of parallelism, groups of hybrid sharding, and what lives in host memory."""
    for degree in DEGREES:
        if facts.get(degree, 1) > 1:
            options[degree], sources[degree] = facts.get(degree), facts.source(degree)
    if facts.get("ulysses", 1) > 1:
        facts.warn(f"{facts.source('ulysses')}: sequences split over heads are counted as split by context parallelism")
        options["context_parallel"], sources["context_parallel"] = facts.get("ulysses"), facts.source("ulysses")
    group = facts.get("data_shard") if facts.get("data_replicate", 1) > 1 else None
    if group is None and facts.get("hybrid"):
        ranks, machines = facts.get("data_parallel", 1), facts.get("machines", 1)
        group = ranks // machines if machines > 1 and ranks % machines == 0 else None
        if group is None:
            facts.warn(f"{facts.source('hybrid')}: one machine, or how many is not known; counted as sharding over all GPUs")
    if group is not None:
        options["shard_group"], sources["shard_group"] = group, facts.source("hybrid") or facts.source("data_shard")
    moved = [name for name, fact in (("optimizer", "offload_optimizer"), ("parameters", "offload_params")) if facts.get(fact)]
    if "parameters" in moved and facts.get("engine") == "fsdp" and "optimizer" not in moved:
        moved.insert(0, "optimizer")  # FSDP's offload moves parameters, gradients and with them the update
    if moved:
        options["offload"] = ",".join(moved)
        sources["offload"] = facts.source("offload_params") or facts.source("offload_optimizer")
        if "nvme" in (facts.get("offload_params"), facts.get("offload_optimizer")):
            facts.warn(f"{sources['offload']}: what goes to a disk is counted as host memory")


def buckets(facts: Facts, config: ConfigReader | None, options: dict[str, Any], sources: dict[str, str]) -> None:
    """DeepSpeed's bucket; the Trainer fills in "auto" with the square of the hidden size (integrations/deepspeed.py)."""
    size = facts.get("reduce_bucket_size")
    if size == "auto":
        hidden = config.mapping.get("hidden_size") if config else None
        size = hidden * hidden if isinstance(hidden, int) else None
    if size is not None:
        options["reduce_bucket_size"], sources["reduce_bucket_size"] = int(size), facts.source("reduce_bucket_size")


def layout(facts: Facts, options: dict[str, Any], sources: dict[str, str], counted: bool) -> None:
    """Ranks, stage, engine and the rest of the layout. `counted`: the command line says how many GPUs there are."""
    ranks = ranks_of(facts)
    if ranks is not None:
        options["data_parallel"] = ranks
        sources["data_parallel"] = facts.source("data_parallel") or facts.source("data_shard")
    _degrees(facts, options, sources)
    stage = facts.get("zero_stage", 0)
    if stage and (facts.has("zero_stage") or ranks is not None or counted):
        options["zero_stage"], sources["zero_stage"] = stage, facts.source("zero_stage")
        if ranks is None and facts.has("zero_stage") and not counted:
            facts.warn(f"{facts.source('zero_stage')}: no file says over how many GPUs; give --data-parallel (now 1)")
        engine = facts.get("engine")
        if engine is not None and not (engine == "fsdp" and stage == 1):
            options["engine"], sources["engine"] = engine, facts.source("engine")
        if engine == "fsdp" and stage > 1 and facts.get("fsdp_version") == 2:
            options["fsdp_units"], sources["fsdp_units"] = "accelerate", facts.source("fsdp_version")
