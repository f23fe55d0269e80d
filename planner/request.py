"""What was asked: one configuration of one training step, with every default filled in and checked."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tuneplan.hardware_profiles.loader import Gpu
from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.graph.loss import LOSSES
from tuneplan.planner.host_memory import GPUS_OF_A_NODE, USUAL, Checkpoints
from tuneplan.planner.methods.compose import explicit
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.models.tasks import CLASSIFIES, SEQ2SEQ
from tuneplan.planner.training.attention_kernel import AMPERE
from tuneplan.planner.training.optimizers import Optimizer
from tuneplan.planner.training.settings import ATTENTIONS, CHECKPOINTING, DTYPES, EXPERTS, KERNELS, PRECISIONS, ROUTINGS, Settings
from tuneplan.planner.training.sharding import SINGLE, Sharding

if TYPE_CHECKING:
    from tuneplan.planner.configs.training_config import ConfigUse

MAXIMUM_TOKENS_OF_A_STEP = 2**31
LONGEST_SEQUENCE = 2**24


@dataclass(frozen=True, slots=True)
class Request:
    """One configuration.

    Attributes:
        spec: the model.
        method: what is trained.
        settings: how.
        optimizer: the update.
        sharding: over how many GPUs, and what they split.
        gradient_accumulation_steps: micro-batches before an update.
        gpu: the card, or None where only memory is asked.
        capacity_bytes: device memory to hold the run against, or None.
        expandable_segments: PYTORCH_ALLOC_CONF=expandable_segments:True.
        batch_lengths: lengths of one batch after the other, where they vary; the longest is `settings.seq_len`.
        empty_cache_steps: the cache is emptied every so many steps (`torch_empty_cache_steps`); 0 for never.
        checkpoints: how weights are loaded and what is saved.
        gpus_of_a_node: cards of one machine.
        network_bytes_per_second: between machines, in one direction, all adapters of one together; None for the assumed one.
        config: the files that it was read from, or None.
    """

    spec: ModelSpec
    method: Method
    settings: Settings
    optimizer: Optimizer
    sharding: Sharding = SINGLE
    gradient_accumulation_steps: int = 1
    gpu: Gpu | None = None
    capacity_bytes: int | None = None
    expandable_segments: bool = False
    batch_lengths: tuple[int, ...] = ()
    empty_cache_steps: int = 0
    checkpoints: Checkpoints = USUAL
    gpus_of_a_node: int = GPUS_OF_A_NODE
    network_bytes_per_second: float | None = None
    config: "ConfigUse | None" = None

    @property
    def replays(self) -> bool:
        """Whether the step is replayed through the allocator: not where ranks split states or a model, nor with extra phases."""
        plain = self.settings.objective.plain
        return plain and not self.sharding.zero_stage and not self.sharding.splits_model

    def to_json(self) -> dict[str, object]:
        """Every option as it was used, defaults included."""
        s = self.settings
        return {
            "model": self.spec.id,
            "method": self.method.name,
            "method_in_full": explicit(self.method),
            "task": self.spec.task,
            "num_labels": self.spec.num_labels if self.spec.task in CLASSIFIES else None,
            "seq_len": s.seq_len,
            "target_len": s.target_length if self.spec.task == SEQ2SEQ else None,
            "images": s.images if self.spec.image_tokens else None,
            "image_size": list(s.image_size) if s.image_size else None,
            "micro_batch_size": s.micro_batch_size,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "dtype": s.dtype,
            "precision": s.precision,
            "optimizer": self.optimizer.name,
            "gradient_checkpointing": s.gradient_checkpointing,
            "attention": s.attention,
            "padded": s.padded,
            "keep_outputs": s.keep_outputs,
            "use_cache": s.use_cache and s.gradient_checkpointing == "off",
            "loss": s.loss,
            "experts": s.experts if self.spec.is_mixture else None,
            "routing": s.routing if self.spec.is_mixture else None,
            "kernels": s.kernels,
            "max_grad_norm": s.max_grad_norm,
            "training": s.objective.to_json(),
            "data_parallel": self.sharding.data_parallel,
            "zero_stage": self.sharding.zero_stage,
            **self.sharding.more(),
            "expandable_segments": self.expandable_segments,
            "batch_lengths": list(self.batch_lengths) or None,
            "empty_cache_steps": self.empty_cache_steps,
            **self.checkpoints.to_json(),
            "gpu": self.gpu.id if self.gpu else None,
        }


def check_settings(settings: Settings) -> None:
    """Raise InputError (or UnknownNameError) for settings that make no sense, naming the option as on the command line."""
    for option, value, known in (
        ("dtype", settings.dtype, DTYPES),
        ("precision", settings.precision, PRECISIONS),
        ("attention", settings.attention, ATTENTIONS),
        ("loss", settings.loss, tuple(LOSSES)),
        ("experts", settings.experts, EXPERTS),
        ("routing", settings.routing, ROUTINGS),
        ("kernels", settings.kernels, KERNELS),
        ("gradient-checkpointing", settings.gradient_checkpointing, CHECKPOINTING),
    ):
        if value not in known:
            raise UnknownNameError(option, value, known, "plan estimate --help")
    if settings.micro_batch_size < 1:
        raise InputError(f"micro-batch-size {settings.micro_batch_size} is not a batch; use 1 or more")
    if not 2 <= settings.seq_len <= LONGEST_SEQUENCE:
        raise InputError(f"seq-len {settings.seq_len} is not a length to train on; use 2 to {LONGEST_SEQUENCE} tokens")
    if settings.micro_batch_size * settings.seq_len > MAXIMUM_TOKENS_OF_A_STEP:
        raise InputError(
            f"{settings.micro_batch_size} sequences of {settings.seq_len} tokens are more than 2^31 tokens in one forward; "
            "lower micro-batch-size or seq-len"
        )
    if not 0 <= settings.max_grad_norm < float("inf"):
        raise InputError(f"max-grad-norm {settings.max_grad_norm} is not a norm; use such as 1.0, or 0 for no clipping")
    if settings.precision == "master-weights" and settings.dtype == "fp32":
        raise InputError("precision master-weights keeps fp32 copies of 16-bit weights, and dtype is fp32; use dtype bf16")
    if settings.attention == "flash" and settings.compute_capability < AMPERE:
        raise InputError("FlashAttention-2 needs an Ampere card (compute capability 8.0) or later; use attention sdpa")
    if settings.attention == "flash" and settings.dtype == "fp32" and not settings.autocast:
        raise InputError("FlashAttention has no fp32 kernel; use dtype bf16 or fp16, or attention sdpa")


def with_experts(settings: Settings, experts: str | None, routing: str | None, spec: ModelSpec | None) -> Settings:
    """Settings with the words of `--experts` and `--routing`, None where they were not given.

    `spec`: None for a model that the planner does not know. Raises InputError (or UnknownNameError) for words that are not
    known, and for a model without experts.
    """
    given = [option for option, value in (("experts", experts), ("routing", routing)) if value is not None]
    if given and spec is not None and not spec.is_mixture:
        raise InputError(f"--{given[0]} is of a mixture of experts, which {spec.id} is not; leave it out")
    experts = settings.experts if experts is None else experts
    return replace(settings, experts=experts, routing=settings.routing if routing is None else routing)
