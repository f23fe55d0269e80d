"""How a run is spread over GPUs: ranks, what they split, and by which engine.

Stage 0 is DistributedDataParallel (or one GPU). Stages 1 to 3 are ZeRO's (Rajbhandari et al. 2020, ZeRO, section 5): of
DeepSpeed, or of FSDP2, whose stage 2 is `reshard_after_forward=False` and whose stage 3 is full sharding.
"""

from dataclasses import dataclass, replace
from typing import Any

from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.graph.tensor import BITS
from tuneplan.planner.training.settings import Settings

STAGES = (0, 1, 2, 3)
OFFLOADS = ("optimizer", "parameters", "activations")
SCHEDULES = ("1f1b", "interleaved", "gpipe")
ENGINES = ("auto", "ddp", "fsdp", "deepspeed")
UNITS = ("root", "accelerate")
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
        data_parallel: ranks, each with its own micro-batch; an array, for a search, of numbers above 1 (for stage 0, of any).
        zero_stage: 0 nothing is split, 1 optimizer states, 2 gradients too, 3 weights too.
        engine: "ddp", "fsdp", "deepspeed", or "auto": DDP for stage 0, DeepSpeed for 1, FSDP2 for 2 and 3.
        shard_group: ranks over which states are split, the groups of them being replicas (HSDP); 0 for all.
        reduce_dtype: in which FSDP reduces gradients; "" for that of the computation.
        units: of FSDP: "root" has one for all that is outside the layers; "accelerate" (1.15) has one for the input embedding,
            one for last norm and head (with the embedding where they are tied), and a root for the rest.
        offload: what is kept in host memory: "optimizer", "parameters", "activations".
        buckets: DeepSpeed's sizes.
        tensor_parallel: ranks that split heads and columns of every layer.
        sequence_parallel: these ranks also split the tokens between the split linears.
        pipeline_parallel: stages of consecutive layers.
        pipeline_schedule: "1f1b", "interleaved" or "gpipe".
        virtual_stages: parts of each stage in an interleaved schedule.
        context_parallel: ranks that split each sequence (ring attention).
        expert_parallel: ranks that split the experts of a mixture; they are among the data-parallel ones.
    """

    data_parallel: int = 1
    zero_stage: int = 0
    engine: str = "auto"
    shard_group: int = 0
    reduce_dtype: str = ""
    units: str = "root"
    offload: tuple[str, ...] = ()
    buckets: Buckets = Buckets()
    tensor_parallel: int = 1
    sequence_parallel: bool = False
    pipeline_parallel: int = 1
    pipeline_schedule: str = "1f1b"
    virtual_stages: int = 1
    context_parallel: int = 1
    expert_parallel: int = 1

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
        if self.units not in UNITS:
            raise UnknownNameError("fsdp-units", self.units, UNITS, "plan estimate --help")
        self._check_group()
        self._check_model_parallel()
        self._check_offload()

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

    def _check_model_parallel(self) -> None:
        for name in ("tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel", "virtual_stages"):
            ranks, option = getattr(self, name), name.replace("_", "-")
            if not 1 <= ranks <= MOST_RANKS:
                raise InputError(f"{option} {ranks} is not a number of ranks; use 1 to {MOST_RANKS}")
        if self.gpu_count > MOST_RANKS:
            raise InputError(f"the layout needs {self.gpu_count} GPUs, more than {MOST_RANKS}; lower one of its numbers")
        if self.sequence_parallel and self.tensor_parallel == 1:
            raise InputError(
                "sequence-parallel splits tokens over the tensor-parallel ranks, and there is one; add tensor-parallel"
            )
        if self.pipeline_schedule not in SCHEDULES:
            raise UnknownNameError("pipeline-schedule", self.pipeline_schedule, SCHEDULES, "plan estimate --help")
        if self.virtual_stages > 1 and (self.pipeline_parallel == 1 or self.pipeline_schedule != "interleaved"):
            raise InputError(
                "virtual-stages are parts of an interleaved pipeline; use pipeline-schedule interleaved and several stages"
            )
        if self.pipeline_schedule == "interleaved" and self.virtual_stages == 1 and self.pipeline_parallel > 1:
            raise InputError("an interleaved pipeline has several parts a stage; give virtual-stages 2 or more")
        if self.data_parallel % self.expert_parallel:
            raise InputError(
                f"expert-parallel {self.expert_parallel} does not divide data-parallel {self.data_parallel}, whose ranks hold "
                "the experts; use a divisor"
            )
        if self.engine_used == "deepspeed" and self.zero_stage >= 2 and self.pipeline_parallel > 1:
            raise InputError(
                "DeepSpeed's pipelines work with zero-stage 0 or 1 alone; lower zero-stage, or use pipeline-parallel 1"
            )

    def _check_offload(self) -> None:
        unknown = [name for name in self.offload if name not in OFFLOADS]
        if unknown:
            raise UnknownNameError("offload", unknown[0], OFFLOADS, "plan estimate --help")
        engine = self.engine_used
        if engine == "fsdp" and ("optimizer" in self.offload) != ("parameters" in self.offload):
            raise InputError(
                "FSDP's CPUOffloadPolicy moves parameters, gradients and optimizer together; name both, or use deepspeed"
            )
        if "parameters" in self.offload and engine == "deepspeed" and self.zero_stage < 3:
            raise InputError("DeepSpeed moves parameters to host memory in zero-stage 3 alone; use 3, or --offload optimizer")
        if engine in ("single", "ddp") and {"parameters", "optimizer"} & set(self.offload):
            raise InputError(
                f"engine {engine} keeps parameters and optimizer on the device; use fsdp or deepspeed with several GPUs, or "
                "a paged optimizer"
            )

    def more(self) -> dict[str, Any]:
        """What differs from one GPU and from plain data parallelism, by the names of the options."""
        found: dict[str, Any] = {"engine": self.engine_used} if self.gpu_count > 1 else {}
        names = ("shard_group", "reduce_dtype", "tensor_parallel", "sequence_parallel", "pipeline_parallel", "virtual_stages")
        for name in (*names, "context_parallel", "expert_parallel"):
            if getattr(self, name) not in (0, 1, "", False):
                found[name] = getattr(self, name)
        if self.engine_used == "fsdp" and self.units != "root":
            found["fsdp_units"] = self.units
        if self.pipeline_parallel > 1:
            found["pipeline_schedule"] = self.pipeline_schedule
        if self.offload:
            found["offload"] = list(self.offload)
        if self.engine_used == "deepspeed":
            found["reduce_bucket_size"] = self.buckets.reduce_elements
        return found

    @property
    def gpu_count(self) -> int:
        """GPUs of the whole layout."""
        return self.data_parallel * self.tensor_parallel * self.pipeline_parallel * self.context_parallel

    @property
    def splits_model(self) -> bool:
        """Whether ranks compute different parts of one micro-batch."""
        return self.tensor_parallel * self.pipeline_parallel * self.context_parallel * self.expert_parallel > 1

    @property
    def engine_used(self) -> str:
        """The engine, "single" for one rank."""
        if isinstance(self.data_parallel, int) and self.data_parallel == 1:
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
    def state_parts(self) -> int:
        """Parts of the optimizer states that no two ranks share."""
        return self.state_ranks * self.tensor_parallel * self.pipeline_parallel

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
        if self.gpu_count == 1:
            return "single GPU"
        name = "DDP" if self.zero_stage == 0 else f"ZeRO-{self.zero_stage}"
        pieces = [f"{name} x {self.data_parallel}"] if self.data_parallel > 1 else []
        pieces += [f"groups of {self.shard_group}"] if self.replicas > 1 else []
        for short, ranks in (
            ("TP", self.tensor_parallel),
            ("PP", self.pipeline_parallel),
            ("CP", self.context_parallel),
            ("EP", self.expert_parallel),
        ):
            pieces += [f"{short} x {ranks}"] if ranks > 1 else []
        return ", ".join(pieces)


def share(size_bytes: int, ranks: int) -> int:
    """One rank's part, rounded up."""
    return -(-size_bytes // ranks)


SINGLE = Sharding()
