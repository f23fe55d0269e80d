"""A run while it runs: its peak beside the plan's prediction, and an early word where the longest batch will not fit.

For loops of one's own (plain torch, accelerate); `callback.py` does it for the Trainer of transformers and for TRL.
"""

import json
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_iter

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph.tensor import TEMPORARY
from tuneplan.planner.report.document import SCHEMA_VERSION
from tuneplan.planner.units import format_gib
from tuneplan.profiling.files import write_atomic
from tuneplan.profiling.regression.versions import installed
from tuneplan.profiling.regression.watch import watch
from tuneplan.profiling.tracker import quantization_state

logger = logging.getLogger("tuneplan")
_TOKENS = ("input_ids", "inputs_embeds", "pixel_values")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a plan says: `plan estimate --json` or `plan trace --json`.

    Attributes:
        peak_bytes: most live bytes.
        tokens: of a micro-batch, which should be the longest; 0 where it is not said.
    """

    peak_bytes: int
    tokens: int = 0

    @classmethod
    def of(cls, plan: "Prediction | Mapping[str, Any] | str | Path | int") -> "Prediction":
        """From bytes, a document or the path of one. Raises InputError for what is none of them."""
        if isinstance(plan, cls):
            return plan
        if isinstance(plan, int):
            return cls(plan)
        if isinstance(plan, str | Path):
            try:
                plan = json.loads(Path(plan).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise InputError(f"{plan} is no plan: {error}; write one with plan estimate ... --json > plan.json") from error
        try:
            content: Any = plan
            request = content.get("request") or {}
            tokens = int(request.get("micro_batch_size") or 0) * int(request.get("seq_len") or 0)
            return cls(int(content["peak"]["allocated_bytes"]), tokens)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError("the plan has no peak.allocated_bytes; give the output of plan estimate --json") from error


class LiveMemory:
    """Follows the first steps of a run.

    On CUDA the caching allocator's own peak is read. On a CPU, which keeps none, storages are tracked while these steps run.

    Attributes:
        peak_bytes: most live bytes so far.
        largest_tokens: of the largest micro-batch so far.
        messages: what was said, in order.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any = None,
        plan: Prediction | Mapping[str, Any] | str | Path | int | None = None,
        *,
        steps: int = 3,
        longest_tokens: int = 0,
        capacity_bytes: int = 0,
        tolerance_percent: float = 5.0,
    ) -> None:
        """Arguments.

        Args:
            model: that is trained.
            optimizer: over its parameters; it may follow later.
            plan: what was predicted, if anything.
            steps: to follow before the verdict; two at least, as the first update makes the optimizer's states.
            longest_tokens: of the longest micro-batch that may come; by default the plan's.
            capacity_bytes: of the device; by default all of the card, and without limit on a CPU.
            tolerance_percent: how far above the plan is worth a warning.

        Raises:
            InputError: too few steps, or a plan that is none.
        """
        if steps < 2:
            raise InputError(f"{steps} steps show no steady step: the first update makes the optimizer's states; use 2 or more")
        self.model, self.optimizer, self.steps = model, optimizer, steps
        self.plan = None if plan is None else Prediction.of(plan)
        self.longest_tokens = longest_tokens or (self.plan.tokens if self.plan else 0)
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        total = torch.cuda.mem_get_info(self.device)[1] if self.device.type == "cuda" else 0
        self.capacity_bytes = capacity_bytes or total
        self.tolerance_percent = tolerance_percent
        self.peak_bytes = self.largest_tokens = self.done = 0
        self.messages: list[str] = []
        self._block = ExitStack()
        self._tracker: Any = None
        self._left: list[Any] = []

    @property
    def over(self) -> bool:
        """Whether all steps that are followed are done."""
        return self.done >= self.steps

    def before_step(self) -> None:
        """A step begins."""
        if self.over:
            return
        self._block.callback(self.model.register_forward_pre_hook(self._saw, with_kwargs=True).remove)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            optimizers = [self.optimizer] if self.optimizer is not None else []
            self._tracker = self._block.enter_context(watch(Path.cwd(), self.device.type, [self.model], optimizers))
            left = [storage for reference in self._left if (storage := reference()) is not None]
            self._tracker.watch((torch.empty(0, dtype=torch.uint8).set_(storage) for storage in left), "kept", TEMPORARY)

    def after_step(self) -> None:
        """A step is done; after the last one that is followed comes the verdict."""
        if self.over:
            return
        self._block.close()
        self.peak_bytes = max(self.peak_bytes, self._peak())
        self.done += 1
        if self.done == self.steps:
            self._verdict()

    def close(self) -> None:
        """Let go of everything, also of a step that was broken off."""
        self._block.close()

    def _peak(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        live = peak = 0
        for born, allocation in self._tracker.log:
            live += allocation.size_bytes if born else -allocation.size_bytes
            peak = max(peak, live)
        self._left = self._tracker.alive  # DDP's buckets, which nothing in Python has: the next step starts with them
        self._tracker = None
        return peak

    def _saw(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = next((kwargs[name] for name in _TOKENS if kwargs.get(name) is not None), args[0] if args else None)
        if isinstance(given, torch.Tensor):
            a_sequence = given.dim() == 3 or (given.dim() == 2 and not given.is_floating_point())
            self.largest_tokens = max(self.largest_tokens, given.shape[0] * (given.shape[1] if a_sequence else 1))

    @property
    def fixed_bytes(self) -> int:
        """What does not grow with the batch: weights, gradients of what is trained, optimizer states."""
        held = [*self.model.parameters(), *self.model.buffers(), *quantization_state(self.model)]
        states = tree_iter(list(getattr(self.optimizer, "state", {}).values()))
        held += [leaf for leaf in states if isinstance(leaf, torch.Tensor) and leaf.device.type == self.device.type]
        sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in held}
        return sum(sizes.values()) + sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)

    @property
    def longest_peak_bytes(self) -> int | None:
        """The peak at the longest batch, modelled: what grows, grows with the tokens. None where no length is known.

        A lower bound for attention that keeps a matrix of lengths (eager), which grows with their square.
        """
        if not self.longest_tokens or not self.largest_tokens:
            return None
        grows = max(self.peak_bytes - self.fixed_bytes, 0)
        return self.peak_bytes + grows * max(self.longest_tokens - self.largest_tokens, 0) // self.largest_tokens

    def _verdict(self) -> None:
        longest = self.longest_peak_bytes
        compared = longest if longest is not None else self.peak_bytes
        seen = f"peak {format_gib(self.peak_bytes)} after {self.done} steps, largest micro-batch {self.largest_tokens} tokens"
        self._say(logging.INFO, seen)
        if self.plan is not None:
            percent = 100 * (compared - self.plan.peak_bytes) / self.plan.peak_bytes
            level = logging.WARNING if percent > self.tolerance_percent else logging.INFO
            self._say(level, f"{format_gib(compared)} where the plan says {format_gib(self.plan.peak_bytes)} ({percent:+.1f} %)")
        if self.capacity_bytes and compared > self.capacity_bytes:
            short = format_gib(compared - self.capacity_bytes)
            self._say(
                logging.WARNING,
                f"this run will not fit at its longest batch ({self.longest_tokens or self.largest_tokens} tokens): "
                f"{format_gib(compared)} of {format_gib(self.capacity_bytes)}, short by {short}; use a smaller micro-batch, "
                "shorter sequences or gradient checkpointing",
            )

    def _say(self, level: int, message: str) -> None:
        self.messages.append(message)
        logger.log(level, "tuneplan: %s", message)

    def to_json(self) -> dict[str, Any]:
        """What was measured, beside what was predicted."""
        longest = self.longest_peak_bytes
        fits = None if not self.capacity_bytes else (longest or self.peak_bytes) <= self.capacity_bytes
        return {
            "schema_version": SCHEMA_VERSION,
            "source": "measured",
            "device": self.device.type,
            "steps": self.done,
            "peak": {"allocated_bytes": self.peak_bytes},
            "fixed_bytes": self.fixed_bytes,
            "largest_tokens": self.largest_tokens,
            "longest_tokens": self.longest_tokens or None,
            "longest_peak_bytes": longest,
            "predicted_bytes": self.plan.peak_bytes if self.plan else None,
            "capacity_bytes": self.capacity_bytes or None,
            "fits": fits,
            "messages": list(self.messages),
            "versions": installed(),
        }

    def write(self, path: Path) -> None:
        """Write the JSON file whole. Raises InputError where it cannot be written."""
        write_atomic(path, (json.dumps(self.to_json(), indent=2) + "\n").encode())
