"""What configuration files ask for, in the words of the command line, with an account of every key."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tuneplan.planner.configs.accounting import IRRELEVANT, NOT_MODELLED, USED, Entry
from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.method import Method


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """One training run as files describe it.

    Attributes:
        formats: the tool of each file, by the file's name as given, such as {"train.yaml": "trl-sft"}.
        stack: the software that would run it, such as "trl 1.16.0, transformers 5.23.0".
        model: alias, hub id or path, or None where no file names one.
        method: what is trained, or None where no file says it.
        options: other options of `plan estimate` that the files decide, by their names in Python: "seq_len",
            "micro_batch_size", "gradient_accumulation_steps", "dtype", "precision", "optimizer", "gradient_checkpointing"
            (a bool), "reentrant", "attention", "loss", "padded", "max_grad_norm", "data_parallel", "zero_stage",
            "empty_cache_steps", ...
        amount: how much is trained, where the files say so: "epochs" and "max_steps".
        objective: "sft", "dpo", "reward", "grpo", "kto", "rloo" or "pretraining".
        objective_options: what only that objective has (beta, num_generations, ...), in the tool's words.
        entries: every key of every file.
        warnings: what is not modelled, what was assumed, and where files contradict each other.
        sources: for each of `options`, "model" and "method": file, line and key that decided it, or whose default it is.
    """

    formats: Mapping[str, str]
    stack: str
    model: str | None
    method: Method | None
    options: Mapping[str, Any]
    amount: Mapping[str, float] = field(default_factory=dict)
    objective: str = "sft"
    objective_options: Mapping[str, Any] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()
    warnings: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The account as the report has it; values of the files appear only where the planner used them."""
        return {
            "files": [{"file": name, "format": kind} for name, kind in self.formats.items()],
            "stack": self.stack,
            "objective": self.objective,
            "sources": dict(self.sources),
            **{status: [e.to_json() for e in self.entries if e.status == status] for status in (USED, IRRELEVANT, NOT_MODELLED)},
        }


@dataclass(frozen=True, slots=True)
class ConfigUse:
    """Files that were read for a command.

    Attributes:
        config: what they say.
        overridden: options of the command line that won over the files, with what the files say.
    """

    config: TrainingConfig
    overridden: Mapping[str, object]

    def located(self, error: InputError) -> InputError:
        """An error about an option, with the place of the file that gave it in front."""
        for name, source in self.config.sources.items():
            if name not in self.overridden and str(error).startswith(f"{name.replace('_', '-')} "):
                return InputError(f"{source}: {error}")
        return error

    def to_json(self) -> dict[str, Any]:
        """As reports have it."""
        return {**self.config.to_json(), "overridden": {name: str(value) for name, value in self.overridden.items()}}
