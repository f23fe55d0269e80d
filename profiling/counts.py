"""How many parameters a model has, and what follows for host memory and disk."""

from dataclasses import dataclass

from tuneplan.planner.device_memory import LOADING_SHARD_BYTES


@dataclass(frozen=True, slots=True)
class Counts:
    """Parameters, and bytes of what a checkpoint holds: what is trained where anything is frozen, else all."""

    total: int
    trainable: int
    checkpoint_bytes: int
    weight_bytes: int

    @property
    def host_bytes(self) -> int:
        """Host memory at most: one file of the checkpoint while loading, or the checkpoint that is gathered and saved."""
        return max(min(self.weight_bytes, LOADING_SHARD_BYTES), self.checkpoint_bytes)

    def saving(self) -> dict[str, int | None]:
        """Host memory around the step, of one process; null is what a trace of a step does not know."""
        return {
            "host_bytes": self.checkpoint_bytes,
            "host_training_bytes": None,
            "host_loading_bytes": min(self.weight_bytes, LOADING_SHARD_BYTES),
            "ranks_per_node": 1,
            "disk_bytes": None,
            "kept_disk_bytes": None,
        }
