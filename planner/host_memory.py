"""Host memory of a node and disk: loading, what lives there while training, gathering and saving checkpoints.

Not counted: Python, torch and the CUDA runtime themselves (2-4 GB a process), the data set and its workers, the page cache.
"""

from dataclasses import dataclass
from typing import Any

from tuneplan.planner.device_memory import LOADING_SHARD_BYTES, checkpoint_bytes
from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.graph.tensor import BITS
from tuneplan.planner.memory import StepMemory
from tuneplan.planner.models.network import Network
from tuneplan.planner.parallel.shards import split
from tuneplan.planner.training.optimizers import Optimizer, state_bytes
from tuneplan.planner.training.sharding import Sharding

LOADINGS = ("auto", "by-file", "rank0", "every-rank")
STATE_DICTS = ("full", "sharded")
GPUS_OF_A_NODE = 8
RNG_BYTES = 16_000
"""Random states of one rank as the Trainer saves them (`rng_state.pth`: Python, numpy, torch and the card's)."""
MOST_KEPT = 10**6


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """How a run loads its weights and what it saves.

    Attributes:
        loading: "by-file" maps one checkpoint file after the other on every rank (transformers 5.23, safetensors); "rank0" builds
            the whole model in the first rank's host memory and sends parts (accelerate's `cpu_ram_efficient_loading`,
            `sync_module_states`); "every-rank" builds it in each; "auto" is rank0 under FSDP unless the base is quantized (which
            accelerate leaves out), else by-file.
        state_dict: "full" is gathered on the first rank, "sharded" is written by each rank.
        only_model: optimizer, scheduler and random states are not saved (`save_only_model`).
        total_limit: checkpoints kept on disk (`save_total_limit`).
    """

    loading: str = "auto"
    state_dict: str = "full"
    only_model: bool = False
    total_limit: int = 1

    def check(self) -> None:
        """Raise InputError for what does not exist."""
        if self.loading not in LOADINGS:
            raise UnknownNameError("loading", self.loading, LOADINGS, "plan estimate --help")
        if self.state_dict not in STATE_DICTS:
            raise UnknownNameError("state-dict", self.state_dict, STATE_DICTS, "plan estimate --help")
        if not 1 <= self.total_limit <= MOST_KEPT:
            raise InputError(f"save-total-limit {self.total_limit} is not a number of checkpoints to keep; use 1 to {MOST_KEPT}")

    def to_json(self) -> dict[str, Any]:
        """The options, as they were used."""
        return {
            "loading": self.loading,
            "state_dict": self.state_dict,
            "save_only_model": self.only_model,
            "save_total_limit": self.total_limit,
        }


USUAL = Checkpoints()


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes in the host memory of the fullest node (the first), and on disk.

    Attributes:
        ranks: processes on the node.
        loading_bytes: while weights are loaded.
        training_bytes: what lives there during the step: offloaded and paged states, weights, gradients and activations.
        saving_bytes: what gathering and saving adds to that.
        saved_bytes: of one checkpoint on disk, with optimizer and random states if they are saved.
        kept_bytes: of all checkpoints that are kept, and the one that is being written.
    """

    ranks: int
    loading_bytes: int
    training_bytes: int
    saving_bytes: int
    saved_bytes: int
    kept_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Most host memory of the node."""
        return max(self.loading_bytes, self.training_bytes + self.saving_bytes)

    def to_json(self) -> dict[str, int]:
        """The figures by name, as `phases.save` has them."""
        return {
            "host_bytes": self.training_bytes + self.saving_bytes,
            "host_training_bytes": self.training_bytes,
            "host_loading_bytes": self.loading_bytes,
            "ranks_per_node": self.ranks,
            "disk_bytes": self.saved_bytes,
            "kept_disk_bytes": self.kept_bytes,
        }


def host_memory(
    network: Network,
    memory: StepMemory,
    optimizer: Optimizer,
    sharding: Sharding,
    master: bool,
    checkpoints: Checkpoints,
    gpus_of_a_node: int,
) -> HostMemory:
    """Host memory of the first node, and disk.

    Args:
        network: the whole model under its method.
        memory: of a rank.
        optimizer: whose states are saved.
        sharding: the layout.
        master: fp32 copies of 16-bit weights: FSDP keeps, and so saves, the weights themselves in fp32; for others the copies are
            states of the optimizer.
        checkpoints: how they are loaded and saved.
        gpus_of_a_node: of which a node has as many processes, or as the run has.
    """
    ranks = min(sharding.gpu_count, gpus_of_a_node)
    base = sum(2 * p.numel for p in network.parameters if not p.adapter)
    loading = checkpoints.loading
    if loading == "auto":
        loading = "rank0" if sharding.engine_used == "fsdp" and not network.quantized else "by-file"
    loaded = {"by-file": ranks * min(base, LOADING_SHARD_BYTES), "rank0": base, "every-rank": ranks * base}[loading]
    weights = checkpoint_bytes(network)
    wide = master and sharding.engine_used == "fsdp"
    if wide:
        weights += sum(p.numel * (4 - BITS[p.storage] // 8) for p in network.parameters if p.trainable and p.saved)
    states = 0
    if not checkpoints.only_model:
        kept = [split(p, 1, wide) for p in network.parameters] if not network.fused_update else []
        own = state_bytes(optimizer, kept, (master or sharding.engine_used == "deepspeed") and not wide)
        states = own.device + own.host
    whole = weights + states
    once = whole if checkpoints.state_dict == "full" else whole * ranks // sharding.gpu_count
    rng = 0 if checkpoints.only_model else RNG_BYTES * sharding.gpu_count
    training = ranks * memory.host.total
    saving = once - min(once, ranks * (memory.host.states + memory.host.weights) if checkpoints.state_dict == "sharded" else 0)
    saved = whole + rng
    return HostMemory(ranks, loaded, training, saving, saved, saved * (checkpoints.total_limit + 1))
