"""What is traced or measured: a model's config, a method, and how a step is run, in the planner's words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.compose import explicit, parse
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models import tasks
from tuneplan.planner.training.optimizers import Optimizer, find
from tuneplan.planner.training.settings import Settings

TASKS = tasks.TASKS
FULL = parse("full")
ADAMW = find("adamw")
DEFAULT = Settings()
EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True)
class Subject:
    """One configuration of a real training step.

    Attributes:
        id: the model's name, for the report.
        config: contents of a config.json; `model_type` names the architecture.
        method: the planner's parts; what PEFT brings is added as `Part.peft_config` says.
        peft_config: contents of an adapter_config.json for any tuner of PEFT, used instead of the method's own adapters.
        settings: how a step is run.
        optimizer: the update.
        gradient_accumulation_steps: micro-batches of an update.
        task: one of TASKS, or "" for what the config's `architectures` say.
        expandable_segments: the allocator's setting of that name.
        batch_lengths: lengths of one batch after the other, where they vary; the longest is `settings.seq_len`.
        empty_cache_steps: as in the planner's request.
    """

    id: str
    config: Mapping[str, Any]
    method: Method = FULL
    peft_config: Mapping[str, Any] | None = None
    settings: Settings = DEFAULT
    optimizer: Optimizer = ADAMW
    gradient_accumulation_steps: int = 1
    task: str = ""
    expandable_segments: bool = False
    batch_lengths: tuple[int, ...] = ()
    empty_cache_steps: int = 0

    def __post_init__(self) -> None:
        """Raise InputError for a task that is not known or a method that cannot be combined with a PEFT config."""
        if self.task and self.task not in TASKS:
            raise InputError(f"task {self.task!r} is not known; choose one of {', '.join(TASKS)}")
        if self.peft_config is not None and any(part.peft_config() is not None for part in self.method.parts):
            raise InputError(f"method {self.method.name} and a PEFT config both add adapters; give one of them")

    @property
    def vocabulary(self) -> int:
        """Columns of the logits; 0 where the config does not say."""
        size = self.config.get("vocab_size") or dict(self.config.get("text_config") or {}).get("vocab_size") or 0
        return int(size)

    @property
    def is_mixture(self) -> bool:
        """Whether the config tells of experts."""
        return any(self.config.get(key) for key in EXPERT_KEYS)

    def request(self) -> dict[str, object]:
        """Every option as it was used, under the names of the planner's own requests."""
        s = self.settings
        adapter = self.peft_config
        return {
            "model": self.id,
            "method": f"peft config ({adapter.get('peft_type')})" if adapter is not None else self.method.name,
            "method_in_full": dict(adapter) if adapter is not None else explicit(self.method),
            "seq_len": s.seq_len,
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
            "experts": s.experts if self.is_mixture else None,
            "routing": s.routing if self.is_mixture else None,
            "max_grad_norm": s.max_grad_norm,
            "data_parallel": 1,
            "zero_stage": 0,
            "expandable_segments": self.expandable_segments,
            "batch_lengths": list(self.batch_lengths) or None,
            "empty_cache_steps": self.empty_cache_steps,
            "task": self.task or None,
        }


def sft_alone(subject: Subject, command: str) -> None:
    """Raise InputError for a training other than supervised fine-tuning, whose trainers are TRL's."""
    objective = subject.settings.objective
    if not objective.plain:
        raise InputError(
            f"{command} runs supervised fine-tuning, not --training {objective.name}; use plan estimate, or TRL's trainer with "
            "tuneplan.profiling.callback.MemoryCallback"
        )
