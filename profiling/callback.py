"""A callback for the Trainer of transformers, and so for TRL's trainers: the live peak beside the plan's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tuneplan.profiling.live import LiveMemory, Prediction


class MemoryCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Follows the first steps of a training, says how they compare with the plan, and writes what was measured.

    Attributes:
        live: what is followed; None before training begins.
    """

    def __init__(
        self,
        plan: Prediction | Mapping[str, Any] | str | Path | int | None = None,
        *,
        out: str | Path | None = None,
        **options: Any,
    ) -> None:
        """Arguments.

        Args:
            plan: a document of `plan estimate --json`, its path, or bytes.
            out: where to write the measured JSON.
            options: of `LiveMemory`: steps, longest_tokens, capacity_bytes, tolerance_percent.

        Raises:
            InputError: a plan that is none.
        """
        self._plan = None if plan is None else Prediction.of(plan)
        self._out = None if out is None else Path(out)
        self._options = options
        self._written = False
        self.live: LiveMemory | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any) -> None:
        """Learn the model."""
        self._written = False
        self.live = LiveMemory(model, optimizer, self._plan, **self._options)

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """A step begins."""
        if self.live is not None:
            self.live.optimizer = optimizer if optimizer is not None else self.live.optimizer
            self.live.before_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step is done; the file is written as soon as the verdict is there."""
        if self.live is not None:
            self.live.after_step()
            if self.live.over:
                self._write(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A training of fewer steps leaves what was seen."""
        if self.live is not None:
            self.live.close()
            self._write(state)

    def _write(self, state: Any) -> None:
        if self.live is not None and self._out is not None and not self._written and state.is_world_process_zero:
            self.live.write(self._out)
            self._written = True
