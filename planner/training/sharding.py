"""Data parallelism and sharding of model states over the GPUs of a node.

Stage 0 is DistributedDataParallel (or one GPU), stages 1-3 are ZeRO's; stage 2 is FSDP's SHARD_GRAD_OP, stage 3 FULL_SHARD
with one unit a decoder layer and a root unit for the rest (Rajbhandari et al. 2020, ZeRO, section 5; torch 2.13
distributed/fsdp and nn/parallel/distributed.py).
"""

from dataclasses import dataclass

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.network import Network

STAGES = (0, 1, 2, 3)
MOST_RANKS = 2**16


@dataclass(frozen=True, slots=True)
class Sharding:
    """How many ranks share the work, and which model states they split.

    Attributes:
        data_parallel: ranks, each with its own micro-batch.
        zero_stage: 0 nothing is split, 1 optimizer states, 2 gradients too, 3 weights too.
    """

    data_parallel: int = 1
    zero_stage: int = 0

    def check(self) -> None:
        """Raise InputError for impossible layouts."""
        if not 1 <= self.data_parallel <= MOST_RANKS:
            raise InputError(f"data-parallel {self.data_parallel} is not a number of GPUs; use 1 to {MOST_RANKS}")
        if self.zero_stage not in STAGES:
            raise InputError(f"zero-stage {self.zero_stage} does not exist; use 0, 1, 2 or 3")

    @property
    def state_ranks(self) -> int:
        """Ranks that optimizer states are split over."""
        return self.data_parallel if self.zero_stage >= 1 else 1

    @property
    def gradient_ranks(self) -> int:
        """Ranks that gradients are split over."""
        return self.data_parallel if self.zero_stage >= 2 else 1

    @property
    def weight_ranks(self) -> int:
        """Ranks that weights are split over."""
        return self.data_parallel if self.zero_stage >= 3 else 1

    @property
    def label(self) -> str:
        """A short name, such as "ZeRO-3 x 8"."""
        if self.data_parallel == 1:
            return "single GPU"
        return f"{'DDP' if self.zero_stage == 0 else f'ZeRO-{self.zero_stage}'} x {self.data_parallel}"


SINGLE = Sharding()


def bucket_bytes(sharding: Sharding, gradient_bytes: int) -> int:
    """DDP's flat buckets: a second copy of all gradients, unless `gradient_as_bucket_view` is set (it is not by default)."""
    return gradient_bytes if sharding.data_parallel > 1 and sharding.zero_stage == 0 else 0


def gathered_bytes(sharding: Sharding, network: Network) -> int:
    """Whole weights that a rank holds while it computes under stage 3: the root unit, a layer, and the next one prefetched."""
    if sharding.weight_ranks == 1:
        return 0
    layer = sum(p.stored_bytes for p in network.parameters if "*" in p.name)
    root = sum(p.stored_bytes for p in network.parameters if "*" not in p.name)
    return root + 2 * layer


def share(size_bytes: int, ranks: int) -> int:
    """One rank's part, rounded up."""
    return -(-size_bytes // ranks)
