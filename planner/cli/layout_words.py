"""The options that spread a run over GPUs, and the layout that they mean."""

from typing import Any

import click

from tuneplan.planner.cli.options import stack
from tuneplan.planner.errors import InputError
from tuneplan.planner.host_memory import GPUS_OF_A_NODE, LOADINGS, STATE_DICTS, Checkpoints
from tuneplan.planner.target import Target
from tuneplan.planner.training.sharding import ENGINES, MOST_RANKS, OFFLOADS, SCHEDULES, UNITS, Buckets, Sharding
from tuneplan.planner.units import GIGA

MOST_GBPS = 10**6

layout_options = stack(
    click.option("--data-parallel", type=int, default=1, show_default=True, help="GPUs, each with its own micro-batch."),
    click.option("--zero-stage", type=int, default=0, show_default=True, help="What they split: 0 nothing ... 3 weights too."),
    click.option(
        "--engine",
        default="auto",
        show_default=True,
        metavar="|".join(ENGINES),
        help="Who splits it; auto is DDP for stage 0, DeepSpeed for 1, FSDP2 for 2 and 3.",
    ),
    click.option("--shard-group", type=int, default=0, help="GPUs that split one copy of the states (HSDP); 0 for all."),
    click.option("--reduce-dtype", default="", metavar="DTYPE", help="In which FSDP reduces gradients.  [default: the run's]"),
    click.option("--fsdp-units", default="root", show_default=True, metavar="|".join(UNITS), help="What FSDP gathers at once."),
    click.option("--reduce-bucket-size", type=int, default=None, metavar="N", help="DeepSpeed's, in elements.  [default: 5e8]"),
    click.option("--tensor-parallel", type=int, default=1, show_default=True, help="GPUs that split heads and columns."),
    click.option("--sequence-parallel", is_flag=True, help="They split the tokens between split linears too."),
    click.option("--pipeline-parallel", type=int, default=1, show_default=True, help="Stages of consecutive layers."),
    click.option("--pipeline-schedule", default="1f1b", show_default=True, metavar="|".join(SCHEDULES), help="Of micro-batches."),
    click.option("--virtual-stages", type=int, default=1, show_default=True, help="Parts of a stage in an interleaved pipeline."),
    click.option("--context-parallel", type=int, default=1, show_default=True, help="GPUs that split each sequence."),
    click.option("--expert-parallel", type=int, default=1, show_default=True, help="Data-parallel GPUs that split the experts."),
    click.option("--offload", default="", metavar="|".join(OFFLOADS), help="What goes to host memory, several by commas."),
)

checkpoint_options = stack(
    click.option("--loading", default="auto", show_default=True, metavar="|".join(LOADINGS), help="How weights come in."),
    click.option("--state-dict", default="full", show_default=True, metavar="|".join(STATE_DICTS), help="Of checkpoints."),
    click.option("--save-only-model", is_flag=True, help="Checkpoints have no optimizer states."),
    click.option("--save-total-limit", type=int, default=1, show_default=True, help="Checkpoints kept on disk."),
    click.option("--gpus-per-node", type=int, default=None, metavar="N", help="Of a machine.  [default: the instance's, or 8]"),
    click.option("--network-gbps", type=float, default=None, metavar="N", help="Gbit/s between machines.  [assumed: 100]"),
)


def read_network(given: dict[str, Any]) -> float | None:
    """Bytes a second between machines, None where it is not given. Raises InputError."""
    speed = given["network_gbps"]
    if speed is not None and not 0 < speed < MOST_GBPS:
        raise InputError(f"network-gbps {speed} is not a speed; use such as 400")
    return None if speed is None else speed * GIGA / 8


def read_checkpoints(given: dict[str, Any]) -> Checkpoints:
    """How weights are loaded and what is saved. Raises InputError."""
    found = Checkpoints(given["loading"], given["state_dict"], given["save_only_model"], given["save_total_limit"])
    found.check()
    return found


def read_node(given: dict[str, Any], target: Target | None) -> int:
    """GPUs of one machine. Raises InputError."""
    asked = given["gpus_per_node"]
    if asked is not None and not 1 <= asked <= MOST_RANKS:
        raise InputError(f"gpus-per-node {asked} is not a number of GPUs; use 1 to {MOST_RANKS}")
    if asked is not None:
        return int(asked)
    return target.instance.gpu_count if target and target.instance else GPUS_OF_A_NODE


def read_layout(given: dict[str, Any], target: Target | None) -> Sharding:
    """The layout of the words. Raises InputError where it cannot be, or needs more GPUs than the target has."""
    size = given["reduce_bucket_size"]
    if size is not None and size < 0:
        raise InputError(f"reduce-bucket-size {size} is not a number of elements; use such as 500000000")
    sharding = Sharding(
        data_parallel=given["data_parallel"],
        zero_stage=given["zero_stage"],
        engine=given["engine"],
        shard_group=given["shard_group"],
        reduce_dtype=given["reduce_dtype"],
        units=given["fsdp_units"],
        offload=tuple(name.strip() for name in given["offload"].split(",") if name.strip()),
        buckets=Buckets() if size is None else Buckets(reduce_elements=size),
        tensor_parallel=given["tensor_parallel"],
        sequence_parallel=given["sequence_parallel"],
        pipeline_parallel=given["pipeline_parallel"],
        pipeline_schedule=given["pipeline_schedule"],
        virtual_stages=given["virtual_stages"],
        context_parallel=given["context_parallel"],
        expert_parallel=given["expert_parallel"],
    )
    sharding.check()
    if target and target.instance and sharding.gpu_count > target.instance.gpu_count and given["gpus_per_node"] is None:
        instance = target.instance
        raise InputError(
            f"{instance.id} has {instance.gpu_count} GPUs, not {sharding.gpu_count}; lower data-parallel or another degree, "
            f"or give --gpus-per-node {instance.gpu_count} for several of them"
        )
    return sharding
