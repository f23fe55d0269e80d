"""What the planner is asked to find: a model, methods and cards to consider, the amount of training, and limits."""

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING

from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.parallel.splits import LAYOUTS, splits
from tuneplan.planner.target import Target
from tuneplan.planner.training.optimizers import OPTIMIZERS, Optimizer
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding
from tuneplan.planner.wall_clock import NO_OVERHEADS, Overheads

if TYPE_CHECKING:
    from tuneplan.planner.configs.training_config import ConfigUse
    from tuneplan.planner.data.amount import Data

AUTO = "auto"
OBJECTIVES = ("cost", "time", "memory")
PURCHASES = ("on_demand", "spot", "reserved")
DEFAULT_OPTIMIZERS = ("adamw", "adamw_fused", "adamw_8bit")
MOST_TOKENS = 10**18
LARGEST_BATCH = 2**24
MOST_USD = 10**12
DEFAULT_METHODS = ("full", "lora", "qlora")


@dataclass(frozen=True, slots=True)
class Job:
    """A question to the search.

    Attributes:
        spec: the model.
        methods: to consider.
        targets: cards or instances to consider.
        tokens: to train on, all epochs together.
        global_batch_size: sequences of one update over all GPUs.
        settings: length, attention, loss and the like; micro-batch, checkpointing and dtype are searched.
        precision: pure, master-weights or auto (master weights where the base model is trained, pure where only adapters are).
        dtype: bf16, fp16, fp32 or auto (bf16, or fp16 on cards without it).
        checkpointing: settings of gradient checkpointing to consider.
        micro_batch_sizes: to consider; empty for every power of two.
        optimizers: to consider.
        zero_stages: to consider on several GPUs, the first that fits is taken.
        fsdp_units: see `Sharding.units`.
        layouts: "data" for data parallelism alone, or "all" for every split of the model too (`parallel.splits`).
        objective: what is least for the best plan.
        purchase: on_demand, spot or reserved.
        safety_margin: share of the card's memory to leave free.
        max_hours: limit, or None.
        max_usd: limit, or None.
        config: the files that it was read from, or None.
        overheads: what a run does beside training.
        data: whose lengths and epochs decide, or None where every sequence is `settings.seq_len` long.
    """

    spec: ModelSpec
    methods: tuple[Method, ...]
    targets: tuple[Target, ...]
    tokens: int
    global_batch_size: int
    settings: Settings
    precision: str = AUTO
    dtype: str = AUTO
    checkpointing: tuple[str, ...] = ("off", "non-reentrant")
    micro_batch_sizes: tuple[int, ...] = ()
    optimizers: tuple[Optimizer, ...] = tuple(OPTIMIZERS[name] for name in DEFAULT_OPTIMIZERS)
    zero_stages: tuple[int, ...] = (0, 1, 2, 3)
    fsdp_units: str = "root"
    layouts: str = "data"
    objective: str = "cost"
    purchase: str = "on_demand"
    safety_margin: float = 0.0
    max_hours: float | None = None
    max_usd: Decimal | None = None
    config: "ConfigUse | None" = None
    overheads: Overheads = NO_OVERHEADS
    data: "Data | None" = None

    def check(self) -> None:
        """Raise InputError for amounts that make no sense."""
        self.overheads.check()
        if not 1 <= self.tokens <= MOST_TOKENS:
            raise InputError(f"tokens {self.tokens} is not an amount to train on; use 1 to 10^18, such as 10M")
        if not 1 <= self.global_batch_size <= LARGEST_BATCH:
            raise InputError(f"global-batch-size {self.global_batch_size} is not a batch; use 1 to {LARGEST_BATCH}")
        if self.layouts not in LAYOUTS:
            raise UnknownNameError("layouts", self.layouts, LAYOUTS, "plan --help")
        for target in self.targets:
            if not any(self.micro_batches(split.data_parallel) for count in target.counts for split in self.splits(count)):
                counts = ", ".join(str(count) for count in target.counts)
                sizes = ", ".join(str(size) for size in self.micro_batch_sizes)
                by = f" in micro-batches of {sizes}" if sizes else ""
                raise InputError(
                    f"global-batch-size {self.global_batch_size} cannot be split evenly{by} over {counts} x {target.label}; "
                    "use a multiple of GPUs x micro-batch"
                )
        if not 0 <= self.safety_margin < 1:
            raise InputError(f"safety-margin {self.safety_margin} is not a share of memory; use a value such as 0.05")
        if self.max_hours is not None and not 0 < self.max_hours < float("inf"):
            raise InputError(f"max-hours {self.max_hours} leaves no time; use a positive number")
        if self.max_usd is not None and not 0 < self.max_usd < MOST_USD:
            raise InputError(f"max-usd {self.max_usd} is not a budget; use a positive number, such as 50")

    def updates(self) -> int:
        """Optimizer steps of the whole training."""
        if self.data is not None:
            return self.data.updates(self.global_batch_size)
        return -(-self.tokens // (self.global_batch_size * self.settings.seq_len))

    def longest(self, settings: Settings) -> Settings:
        """Settings of the longest batch, for memory."""
        if self.data is None:
            return settings
        return replace(settings, seq_len=max(2, self.data.batches.longest_length(settings.micro_batch_size)))

    def typical(self, settings: Settings) -> Settings:
        """Settings of the mean batch, for time."""
        if self.data is None:
            return settings
        return replace(settings, seq_len=max(2, round(self.data.batches.mean_length(settings.micro_batch_size))))

    def micro_batches(self, count: int) -> list[int]:
        """Micro-batches that split the global batch evenly over so many ranks, smallest first; none where it cannot be."""
        share, rest = divmod(self.global_batch_size, count)
        sizes = self.micro_batch_sizes or tuple(2**i for i in range(share.bit_length()))
        return [] if rest else [size for size in sizes if share and share % size == 0]

    def stages(self, count: int) -> tuple[int, ...]:
        """Sharding stages that are considered on a number of cards."""
        return self.zero_stages if count > 1 else (0,)

    def splits(self, count: int) -> tuple[Sharding, ...]:
        """Layouts of a number of cards, without a sharding stage."""
        return splits(count, self.layouts, self.spec.is_mixture)

    @property
    def candidates(self) -> int:
        """How many configurations: micro-batches x stages over layouts of cards, x checkpointing x optimizers x methods."""
        return len(self.methods) * sum(self.candidates_on(n) for target in self.targets for n in target.counts)

    def candidates_on(self, count: int) -> int:
        """Those of one method on a number of cards."""
        ranks = [split.data_parallel for split in self.splits(count)]
        spread = sum(len(self.micro_batches(n)) * len(self.stages(n)) for n in ranks)
        return spread * len(self.checkpointing) * len(self.optimizers)

    @property
    def most_splits(self) -> int:
        """Layouts of the number of cards that has most of them: each but plain data parallelism takes walks of its own."""
        return max(len(self.splits(count)) for target in self.targets for count in target.counts)

    @property
    def alike(self) -> bool:
        """Whether candidates differ only in what is searched, not in the length of their batches or in what they generate."""
        return self.data is None and self.settings.objective.plain and self.spec.source is None

    @property
    def left_out(self) -> list[int]:
        """Numbers of GPUs that the global batch cannot be split over, so that no plan uses them."""
        counts = {count for target in self.targets for count in target.counts}
        return sorted(n for n in counts if not any(self.micro_batches(split.data_parallel) for split in self.splits(n)))

    def settings_for(self, method: Method, target: Target) -> Settings:
        """The settings that do not vary within a method on a card: precision, dtype and the card's capability."""
        gpu = target.gpu
        capability = gpu.compute_capability if gpu and gpu.compute_capability else self.settings.compute_capability
        dtype = self.dtype
        if dtype == AUTO:
            dtype = "fp16" if capability < (8, 0) else "bf16"
        precision = self.precision
        if precision == AUTO:
            trains_base = not all(part.freezes_base() for part in method.parts)
            precision = "master-weights" if trains_base and dtype != "fp32" else "pure"
        return replace(self.settings, dtype=dtype, precision=precision, compute_capability=capability)
