"""The processes that torchrun starts: which one this is, the model spread over them, and their figures brought together."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tuneplan.planner.errors import InputError
from tuneplan.planner.training.sharding import Sharding
from tuneplan.profiling.build import DTYPES, Built
from tuneplan.profiling.optimizers import make_optimizer
from tuneplan.profiling.subject import Subject

GLOO_SECONDS = 0.1
"""For gloo's threads to free the last tensors they sent, for which they need Python: the end of the group would wait for them and
keep Python to itself, and after the end of Python they would abort the process."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that torchrun started: number, number on this machine, and how many there are."""

    rank: int = 0
    local_rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that reports."""
        return self.rank == 0


ALONE = Ranks()


def from_environment() -> Ranks:
    """What RANK, LOCAL_RANK and WORLD_SIZE say; one process where they are not set. Raises InputError."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if not given:
        return ALONE
    if len(given) < len(names) or not all(value.isdecimal() for value in given.values()):
        said = ", ".join(f"{name}={value}" for name, value in given.items())
        raise InputError(f"the environment says {said}, which is not what torchrun sets; unset them, or use torchrun")
    ranks = Ranks(*(int(given[name]) for name in names))
    if not 0 <= ranks.rank < ranks.count:
        raise InputError(f"RANK={ranks.rank} is not one of WORLD_SIZE={ranks.count} processes; use torchrun")
    return ranks


def check(ranks: Ranks, sharding: Sharding, subject: Subject) -> None:
    """Raise InputError for a layout that was not started, or that the real engines cannot run."""
    if sharding.splits_model:
        raise InputError(f"{sharding.label} is not measured; measure data parallelism, and use plan estimate for the rest")
    if sharding.offload:
        raise InputError(f"--offload {','.join(sharding.offload)} is not measured; measure without, and use plan estimate")
    asked = sharding.data_parallel
    if asked != ranks.count:
        if ranks.count == 1:
            raise InputError(
                f"--data-parallel {asked} needs {asked} processes, and this is one; "
                f"start it with torchrun --nproc-per-node {asked} -m tuneplan.planner.cli.main profile ..."
            )
        raise InputError(f"torchrun started {ranks.count} processes; give --data-parallel {ranks.count}, not {asked}")
    if sharding.engine_used == "deepspeed":
        raise InputError("DeepSpeed's stages are not measured; use --zero-stage 0 (DDP), or 2 or 3 with --engine fsdp (FSDP2)")
    if sharding.zero_stage and ranks.count == 1:
        raise InputError(f"--zero-stage {sharding.zero_stage} splits over several GPUs, and there is one; add --data-parallel")
    quantized = any(part.label == "quantized_base" for part in subject.method.parts)
    if sharding.zero_stage and quantized:
        raise InputError("FSDP2 cannot split bitsandbytes' packed weights; use --zero-stage 0, or a base that is not quantized")
    if ranks.count > 1 and subject.settings.loss != "eager":
        raise InputError(f"--loss {subject.settings.loss} goes around the wrapper of several GPUs; use eager")


@contextmanager
def group(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """A process group while the step runs: NCCL between GPUs, gloo between CPUs; nothing for one process.

    A group that the caller has made is used, and left as it is.
    """
    from torch import distributed

    if ranks.count == 1 or distributed.is_initialized():
        yield
        return
    bound = device if device.type == "cuda" else None
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", device_id=bound)
    yield
    if bound is None:
        time.sleep(GLOO_SECONDS)
    distributed.destroy_process_group()  # not after an error: it would wait for ranks that wait for this one


def spread(built: Built, subject: Subject, sharding: Sharding, ranks: Ranks, device: torch.device) -> Built:
    """The model under DistributedDataParallel, or split by FSDP2 with one unit a decoder layer and a root unit.

    Stage 3 frees gathered weights after each unit, stage 2 keeps them until the backward. Master weights are FSDP2's own: trained
    weights in fp32, cast as they are gathered. The optimizer is made anew, over the parameters that are left to this process.
    """
    if ranks.count == 1:
        return built
    model = built.model
    master = subject.settings.precision == "master-weights"
    if sharding.engine_used == "fsdp":
        shard(model, subject, sharding, device)
        master = False
    else:
        model = nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    trained = [p for p in model.parameters() if p.requires_grad]
    return Built(model, make_optimizer(subject.optimizer.name, trained, master), built.batch, places=built.places)


def shard(model: nn.Module, subject: Subject, sharding: Sharding, device: torch.device) -> None:
    """Split a model in place by FSDP2, over all ranks or, as replicas, over groups of them."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if sharding.replicas > 1:
        mesh = init_device_mesh(device.type, (sharding.replicas, sharding.shard_ranks), mesh_dim_names=("replicas", "shards"))
    else:
        mesh = init_device_mesh(device.type, (sharding.shard_ranks,))
    dtype = DTYPES[subject.settings.dtype]
    reduce = DTYPES[sharding.reduce_dtype] if sharding.reduce_dtype else None
    policy = MixedPrecisionPolicy(reduce_dtype=reduce)
    if subject.settings.precision == "master-weights":
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=reduce or dtype)
    again = sharding.zero_stage == 3
    for module in (*decoder_layers(model), model):
        fully_shard(module, mesh=mesh, reshard_after_forward=again, mp_policy=policy)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The longest list of modules in a model; empty where it has none."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def gather(ranks: Ranks, figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures of every rank, in order; each rank gets them all."""
    if ranks.count == 1:
        return [figures]
    from torch import distributed

    found: list[Any] = [None] * ranks.count
    distributed.all_gather_object(found, figures)
    return found
