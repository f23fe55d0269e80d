"""The processes that torchrun starts: which one this is, the model spread over them, and their figures brought together."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tuneplan.planner.errors import InputError
from tuneplan.planner.training.sharding import Sharding
from tuneplan.profiling.build import Built
from tuneplan.profiling.optimizers import make_optimizer
from tuneplan.profiling.subject import Subject

SHARDED_STAGES = (2, 3)


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
    asked = sharding.data_parallel
    if asked != ranks.count:
        if ranks.count == 1:
            raise InputError(
                f"--data-parallel {asked} needs {asked} processes, and this is one; "
                f"start it with torchrun --nproc-per-node {asked} -m tuneplan.planner.cli.main profile ..."
            )
        raise InputError(f"torchrun started {ranks.count} processes; give --data-parallel {ranks.count}, not {asked}")
    if sharding.zero_stage == 1:
        raise InputError("--zero-stage 1 is not measured; use 0 (DDP), 2 or 3 (FSDP2)")
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
    distributed.destroy_process_group()  # not after an error: it would wait for ranks that wait for this one


def spread(built: Built, subject: Subject, sharding: Sharding, ranks: Ranks, device: torch.device) -> Built:
    """The model under DistributedDataParallel, or split by FSDP2 with one unit a decoder layer and a root unit.

    Stage 3 frees gathered weights after each unit, stage 2 keeps them until the backward. The optimizer is made anew, over the
    parameters that are left to this process.
    """
    if ranks.count == 1:
        return built
    model = built.model
    if sharding.zero_stage in SHARDED_STAGES:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (ranks.count,))
        again = sharding.zero_stage == 3
        for layer in decoder_layers(model):
            fully_shard(layer, mesh=mesh, reshard_after_forward=again)
        fully_shard(model, mesh=mesh, reshard_after_forward=again)
    else:
        model = nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(subject.optimizer.name, trained, subject.settings.precision == "master-weights")
    return Built(model, optimizer, built.batch)


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
