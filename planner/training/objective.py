"""What is trained towards: supervised fine-tuning, a reward model, DPO or GRPO, named after TRL's trainers.

Mirrors SFTTrainer, RewardTrainer, DPOTrainer and GRPOTrainer of TRL 1.16: how many sequences a forward has, which of their tokens
are scored, what else is in memory (a reference model, the cache of a generation), and when.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.graph.tensor import Size

if TYPE_CHECKING:
    from tuneplan.planner.methods.method import Method
    from tuneplan.planner.training.settings import Settings

TRAININGS = ("sft", "reward", "dpo", "grpo")
REFERENCES = ("none", "adapters-off", "model", "precomputed")
REFERENCE, PROMPT = "reference", "prompt"
"""Names of what an objective runs without gradients: texts whose labels are scored, and prompts that are read."""
DEFAULT_GENERATIONS = 8
"""`num_generations` of TRL's GRPOConfig."""
DEFAULT_COMPLETION = 256
"""`max_completion_length` of TRL's GRPOConfig."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What is trained towards.

    Attributes:
        name: one of TRAININGS.
        reference: where DPO's and GRPO's reference log-probabilities come from: "none"; "adapters-off" (the model without its
            adapters); "model" (a second, frozen model); "precomputed" (worked out before training, DPO alone).
        completion_length: tokens of a sequence that are scored, at its end; 0 for all.
        num_generations: completions of a prompt (GRPO).
        generated: sequences that one rank generates at once; `per_device_train_batch_size * steps_per_generation` of TRL.
        vllm_bytes: of the card that a vLLM engine beside the trainer takes (`vllm_mode="colocate"`).
    """

    name: str = "sft"
    reference: str = "none"
    completion_length: int = 0
    num_generations: int = 0
    generated: Size = 0
    vllm_bytes: int = 0

    @property
    def sequences(self) -> int:
        """Sequences of a forward for each example of a micro-batch: chosen and rejected are one batch."""
        return 2 if self.name in ("dpo", "reward") else 1

    @property
    def plain(self) -> bool:
        """Whether it is supervised fine-tuning."""
        return self.name == "sft"

    @property
    def generates_here(self) -> bool:
        """Whether completions come from the trained model's own `generate`."""
        return self.name == "grpo" and not self.vllm_bytes

    def scored(self, length: Size) -> Size:
        """Tokens of a sequence whose log-probabilities count; the first has none."""
        return self.completion_length or length - 1

    def to_json(self) -> dict[str, object]:
        """For a request's JSON."""
        return {
            "name": self.name,
            "reference": self.reference,
            "completion_length": self.completion_length or None,
            "num_generations": self.num_generations or None,
            "vllm_bytes": self.vllm_bytes or None,
        }


SFT = Objective()


def objective_of(
    name: str, reference: str | None, completion_length: int | None, num_generations: int | None, seq_len: int
) -> Objective:
    """The objective of the command line's words, with TRL's defaults.

    `reference`: None for TRL's own choice, which `settled` makes when the method is known.

    Raises:
        UnknownNameError: a training or a reference that is none.
        InputError: options of another training, or lengths that cannot be.
    """
    if name not in TRAININGS:
        raise UnknownNameError("training", name, TRAININGS, "plan estimate --help")
    if reference is not None and reference not in REFERENCES:
        raise UnknownNameError("reference", reference, REFERENCES, "plan estimate --help")
    if name in ("sft", "reward") and reference not in (None, "none"):
        raise InputError(f"--training {name} has no reference; leave --reference {reference} out")
    if name in ("sft", "reward") and completion_length is not None:
        raise InputError(f"--training {name} scores whole sequences; leave --completion-length out")
    if name != "grpo" and num_generations is not None:
        raise InputError(f"--training {name} generates nothing; leave --num-generations out")
    if name == "dpo" and reference == "none":
        raise InputError("DPO compares with a reference; use --reference adapters-off, model or precomputed")
    if name == "grpo" and reference == "precomputed":
        raise InputError("GRPO's texts are not there before training; use --reference none, adapters-off or model")
    completion = completion_length
    if name == "grpo" and completion is None:
        completion = min(DEFAULT_COMPLETION, seq_len - 1)
    if completion is not None and not 1 <= completion < seq_len:
        raise InputError(
            f"a completion of {completion} tokens leaves no prompt in sequences of {seq_len}; use 1 to {seq_len - 1}, or a "
            "longer --seq-len (prompt and completion together)"
        )
    generations = 0
    if name == "grpo":
        generations = DEFAULT_GENERATIONS if num_generations is None else num_generations
        if generations < 2:
            raise InputError(f"num-generations {generations} is no group to compare; use 2 or more")
    return Objective(name, reference or "", completion or 0, generations)


def settled(objective: Objective, method: "Method") -> Objective:
    """With the reference that TRL takes where none was named. Raises InputError for one that the method does not have."""
    adapters = all(part.freezes_base() for part in method.parts)
    if objective.reference == "adapters-off" and not adapters:
        raise InputError(f"{method.name} has no adapters that could be switched off; use --reference model or precomputed")
    if objective.reference:
        return objective
    if objective.name != "dpo":
        return replace(objective, reference="none")
    return replace(objective, reference="adapters-off" if adapters else "model")


def for_method(settings: "Settings", method: "Method", steps: int, ranks: int) -> "Settings":
    """The settings of a method's run that accumulates so many micro-batches: reference, and what is generated at once (GRPO).

    Raises:
        InputError: a reference that the method does not have, or a batch that holds no whole groups of completions.
    """
    if settings.objective.plain:
        return settings
    objective = settled(settings.objective, method)
    if objective.name != "grpo":
        return replace(settings, objective=objective)
    batch = settings.micro_batch_size * steps
    if isinstance(batch, int) and batch * ranks % objective.num_generations:
        raise InputError(
            f"{batch * ranks} completions of an update ({settings.micro_batch_size} x {steps} x {ranks}) are no whole groups of "
            f"num-generations {objective.num_generations}; change one so that it divides the other"
        )
    return replace(settings, objective=replace(objective, generated=batch))
