"""How a run is spread over GPUs: ranks, what they split, and by which engine.

Stage 0 is DistributedDataParallel (or one GPU). Stages 1 to 3 are ZeRO's (Rajbhandari et al. 2020, ZeRO, section 5): of
DeepSpeed, or of FSDP2, whose stage 2 is `reshard_after_forward=False` and whose stage 3 is full sharding.
"""

from dataclasses import dataclass, replace

from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.graph.tensor import BITS
from tuneplan.planner.training.settings import Settings

STAGES = (0, 1, 2, 3)
ENGINES = ("auto", "ddp", "fsdp", "deepspeed")
MOST_RANKS = 2**16


@dataclass(frozen=True, slots=True)
class Buckets:
    """DeepSpeed's sizes, in elements; defaults are those of version 0.18 (runtime/zero/config.py).

    Attributes:
        reduce_elements: `reduce_bucket_size`.
        prefetch_elements: `stage3_prefetch_bucket_size`.
        persistent_elements: `stage3_param_persistence_threshold`: smaller weights stay whole.
        reuse_elements: `stage3_max_reuse_distance`: weights that come again sooner stay gathered.
        sub_group_elements: `sub_group_size`: stage 3 updates as many at a time.
    """

    reduce_elements: int = 500_000_000
    prefetch_elements: int = 50_000_000
    persistent_elements: int = 100_000
    reuse_elements: int = 1_000_000_000
    sub_group_elements: int = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Sharding:
    """How many ranks share the work, and which model states they split.

    Attributes:
        data_parallel: ranks, each with its own micro-batch.
        zero_stage: 0 nothing is split, 1 optimizer states, 2 gradients too, 3 weights too.
        engine: "ddp", "fsdp", "deepspeed", or "auto": DDP for stage 0, DeepSpeed for 1, FSDP2 for 2 and 3.
        shard_group: ranks over which states are split, the groups of them being replicas (HSDP); 0 for all.
        reduce_dtype: in which FSDP reduces gradients; "" for that of the computation.
        offload: what is kept in host memory: "optimizer", "parameters", "activations".
        buckets: DeepSpeed's sizes.
    """

    data_parallel: int = 1
    zero_stage: int = 0
    engine: str = "auto"
    shard_group: int = 0
    reduce_dtype: str = ""
    offload: tuple[str, ...] = ()
    buckets: Buckets = Buckets()

    def check(self) -> None:
        """Raise InputError for impossible layouts."""
        if not 1 <= self.data_parallel <= MOST_RANKS:
            raise InputError(f"data-parallel {self.data_parallel} is not a number of GPUs; use 1 to {MOST_RANKS}")
        if self.zero_stage not in STAGES:
            raise InputError(f"zero-stage {self.zero_stage} does not exist; use 0, 1, 2 or 3")
        if self.engine not in ENGINES:
            raise UnknownNameError("engine", self.engine, ENGINES, "plan estimate --help")
        if self.engine == "ddp" and self.zero_stage:
            raise InputError(f"engine ddp splits nothing, and zero-stage is {self.zero_stage}; use fsdp or deepspeed, or stage 0")
        if self.engine == "fsdp" and self.zero_stage == 1:
            raise InputError("FSDP has no stage that splits optimizer states alone; use zero-stage 2 or 3, or engine deepspeed")
        if self.engine == "fsdp" and self.zero_stage == 0 and self.data_parallel > 1:
            raise InputError("FSDP splits weights, and zero-stage 0 splits nothing; use zero-stage 2 or 3, or engine ddp")
        self._check_group()

    def _check_group(self) -> None:
        group = self.shard_group
        if group < 0 or (group and self.data_parallel % group):
            raise InputError(
                f"shard-group {group} does not divide data-parallel {self.data_parallel}; each group must have as many ranks"
            )
        if group and self.engine_used != "fsdp" and self.data_parallel > 1:
            raise InputError(
                f"shard-group is FSDP's hybrid sharding, and the engine is {self.engine_used}; use zero-stage 2 or 3"
            )
        if self.reduce_dtype and self.reduce_dtype not in ("bf16", "fp16", "fp32"):
            raise UnknownNameError(
                "reduce-dtype", self.reduce_dtype, [d for d in BITS if d in ("bf16", "fp16", "fp32")], "--help"
            )

    @property
    def engine_used(self) -> str:
        """The engine, "single" for one rank."""
        if self.data_parallel == 1:
            return "single"
        if self.engine != "auto":
            return self.engine
        return ("ddp", "deepspeed", "fsdp", "fsdp")[self.zero_stage]

    def settings(self, settings: Settings) -> Settings:
        """The settings as a rank runs them: FSDP and DeepSpeed keep fp32 weights themselves, and compute in 16 bits."""
        engine = self.engine_used
        cast = engine == "deepspeed" or (engine == "fsdp" and settings.precision == "master-weights")
        return settings if cast == settings.gathered_cast else replace(settings, gathered_cast=cast)

    @property
    def shard_ranks(self) -> int:
        """Ranks over which one copy of the states is split."""
        return self.shard_group or self.data_parallel

    @property
    def replicas(self) -> int:
        """Groups of ranks that each hold all states."""
        return self.data_parallel // self.shard_ranks

    @property
    def state_ranks(self) -> int:
        """Ranks that optimizer states are split over."""
        return self.shard_ranks if self.zero_stage >= 1 else 1

    @property
    def gradient_ranks(self) -> int:
        """Ranks that gradients are split over."""
        return self.shard_ranks if self.zero_stage >= 2 else 1

    @property
    def weight_ranks(self) -> int:
        """Ranks that weights are split over between steps; FSDP's stage 2 splits them too and keeps them whole in a step."""
        return self.shard_ranks if self.zero_stage >= 3 or self.engine_used == "fsdp" else 1

    @property
    def label(self) -> str:
        """A short name, such as "ZeRO-3 x 8"."""
        if self.data_parallel == 1:
            return "single GPU"
        return f"{'DDP' if self.zero_stage == 0 else f'ZeRO-{self.zero_stage}'} x {self.data_parallel}"


def share(size_bytes: int, ranks: int) -> int:
    """One rank's part, rounded up."""
    return -(-size_bytes // ranks)


SINGLE = Sharding()
