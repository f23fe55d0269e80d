"""`plan trace` as a library: the real transformers and PEFT code on the meta device, reported as an estimate is.

No weight exists and no value is computed; shapes, dtypes and lifetimes are those of the real code. A method that needs values is
run on CPU tensors with a few layers instead, and extended over the others.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import peft
import torch
import transformers

from tuneplan.planner.device_memory import RuntimeMemory, runtime_bytes
from tuneplan.planner.errors import InputError
from tuneplan.planner.graph.tensor import CATEGORIES
from tuneplan.planner.uncertainty import interval
from tuneplan.planner.units import GIB
from tuneplan.profiling import attention
from tuneplan.profiling.build import DTYPES, Built, build, task_of, transformers_model
from tuneplan.profiling.counts import Counts
from tuneplan.profiling.losses import LOSSES
from tuneplan.profiling.replay import Reserved, replay
from tuneplan.profiling.step import STEP_PHASES, StepTrace, trace_step
from tuneplan.profiling.subject import Subject, sft_alone
from tuneplan.profiling.timeline import Holder, PhasePeak, holders
from tuneplan.profiling.tracker import StorageTracker

LARGEST_SHORT_MODEL_BYTES = 6 * GIB
FEW, MORE = 2, 3
"""Layers of the two short models from which a longer one is extended."""
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers")


@dataclass(frozen=True, slots=True)
class Traced:
    """A traced step in full.

    Attributes:
        subject: what was traced.
        counts: its parameters.
        phases: peaks of a steady step and of loading, by name.
        reserved: the allocator's answer; None where layers were extended.
        runtime: what the process holds outside the allocator.
        step: the record itself; of the longer of the two short models where layers were extended.
        seconds: how long the trace took.
        extended_from: layers that were really run, or () where all were.
        notes: what was built otherwise than asked for.
    """

    subject: Subject
    counts: Counts
    phases: Mapping[str, PhasePeak]
    reserved: Reserved | None
    runtime: RuntimeMemory
    step: StepTrace = field(repr=False)
    seconds: float
    extended_from: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def peak_phase(self) -> str:
        """The phase in which most bytes are live."""
        return max(self.phases, key=lambda name: self.phases[name].peak_bytes)

    @property
    def peak(self) -> PhasePeak:
        """Its peak."""
        return self.phases[self.peak_phase]

    @property
    def reserved_bytes(self) -> int:
        """As replayed; the allocated peak where there is no replay."""
        return self.reserved.reserved_bytes if self.reserved else self.peak.peak_bytes

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of this trace."""
        if not self.extended_from:
            return self.notes
        few = " and ".join(str(n) for n in self.extended_from)
        return (
            *self.notes,
            f"the method needs values, so {few} layers were run on CPU tensors and extended linearly to the model's depth; "
            "reserved memory is not known",
        )

    def holders(self, phase: str = "") -> list[Holder]:
        """What is live at the peak of a phase (of the highest one by default), by the place that asked for it."""
        start, stop = self.step.timeline.shown[phase or self.step.peak_phase]
        return holders(self.step.timeline.at_peak(start, stop))

    def to_json(self) -> dict[str, Any]:
        """The common document of estimated, traced and measured steps."""
        peak = self.peak
        known = self.reserved is not None
        return {
            "source": "traced",
            "request": self.subject.request(),
            "parameters": {"total": self.counts.total, "trainable": self.counts.trainable},
            "peak": {
                "allocated_bytes": peak.peak_bytes,
                "reserved_bytes": self.reserved_bytes,
                "device_bytes": self.reserved_bytes + self.runtime.total_bytes,
                "host_bytes": self.counts.host_bytes,
                "phase": self.peak_phase,
                "op": peak.op,
            },
            "phases": {
                **{n: {"peak_bytes": p.peak_bytes, "end_bytes": p.end_bytes, "op": p.op} for n, p in self.phases.items()},
                "save": self.counts.saving(),
            },
            "components": {
                **dict(zip(CATEGORIES, peak.levels, strict=True)),
                "runtime": self.runtime.total_bytes,
            },
            "checkpoint_bytes": self.counts.checkpoint_bytes,
            "step_seconds": None,
            "tokens_per_second": None,
            "interval": interval(self.reserved_bytes, self.runtime.total_bytes).to_json(),
            "basis": {
                "stack": stack(),
                "parameters": "counted",
                "allocated_bytes": "traced: the real code's births and deaths of storages, rounded to 512 bytes",
                "reserved_bytes": "modelled: the caching allocator's rules replayed over the trace" if known else "not known",
                "runtime": self.runtime.basis,
                "host_bytes": "modelled: loading by shards, gathering and saving the checkpoint",
                "step_seconds": "not traced",
                "trace_seconds": f"{self.seconds:.1f}",
                "layers": "all" if not self.extended_from else f"{self.extended_from} extended",
            },
            "warnings": list(self.warnings),
        }


def stack() -> str:
    """Versions of the traced libraries."""
    return f"transformers {transformers.__version__}, peft {peft.__version__}, torch {torch.__version__}"


def trace(subject: Subject, compute_capability: tuple[int, int] | None = None, vendor: str = "nvidia") -> Traced:
    """Trace a steady training step.

    Args:
        subject: what to run.
        compute_capability: of the card, or None for a server card of the Ampere generation.
        vendor: of the card.

    Raises:
        InputError: transformers refuses the config, PEFT the method, or the step cannot run.
    """
    if subject.settings.loss != "eager" and subject.task not in ("", "causal-lm"):
        raise InputError(f"loss {subject.settings.loss} is for causal language models; use loss eager for task {subject.task}")
    sft_alone(subject, "plan trace")
    if subject.settings.loss not in LOSSES:
        raise InputError(f"loss {subject.settings.loss} is code of an older transformers and cannot be traced; use loss shifted")
    start = time.perf_counter()
    attention.register()
    attention.card.compute_capability = compute_capability or subject.settings.compute_capability
    try:
        run = run_once(subject, "meta")
        phases = {"load": loaded(run.step), **run.step.phases}
        extended: tuple[int, ...] = ()
    except CannotRunError as error:
        run, phases = _extended(subject, error)
        extended = (FEW, MORE)
    reserved = None
    if not extended:
        capability = attention.card.compute_capability
        reserved = replay(run.step.timeline, capability, subject.expandable_segments, subject.empty_cache_steps)
    quantized = any(part.label == "quantized_base" for part in subject.method.parts)
    runtime = runtime_bytes(vendor, compute_capability, 1, quantized)
    seconds = time.perf_counter() - start
    return Traced(subject, run.counts, phases, reserved, runtime, run.step, seconds, extended, run.notes)


class CannotRunError(Exception):
    """The training code failed: on the meta device perhaps because it wants values."""


@dataclass(frozen=True, slots=True)
class Run:
    """Steps that ran, the parameters of their model, and what was built otherwise than asked for."""

    counts: Counts
    step: StepTrace
    notes: tuple[str, ...]
    built: Built = field(repr=False)


def run_once(subject: Subject, device: str, make_tracker: Callable[..., StorageTracker] = StorageTracker, steps: int = 0) -> Run:
    """Build and step. Raises InputError for what cannot be built, `CannotRunError` for what fails in between.

    `steps`: updates in all, where all batches are alike; 0 for two, of which the second is steady, or one of each length.
    """
    implementation = attention.NAMES[subject.settings.attention]
    try:
        built = build(subject, implementation, device)
        counts = count(built.model)
        batches = [built.batch] * steps if steps else _batches(subject, built.batch)
        micro_batches = subject.gradient_accumulation_steps
        step = trace_step(built, subject.settings, accumulation=micro_batches, batches=batches, make_tracker=make_tracker)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, AssertionError) as error:
        raise CannotRunError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
    return Run(counts, step, built.notes, built)


def _batches(subject: Subject, longest: Mapping[str, torch.Tensor]) -> list[Mapping[str, torch.Tensor]]:
    """Batches of the asked lengths, cut from the longest; none where lengths do not vary."""
    return [{k: v[:, :n].clone() if v.dim() > 1 else v for k, v in longest.items()} for n in subject.batch_lengths]


def count(model: torch.nn.Module) -> Counts:
    """Parameters of a model, tied ones once; packed 4-bit weights as the weights that they stand for."""
    total = trainable = trained_bytes = stored = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        size = parameter.numel() if state is None else state.shape.numel()
        total += size
        stored += parameter.numel() * parameter.element_size()
        if parameter.requires_grad:
            trainable += size
            trained_bytes += parameter.numel() * parameter.element_size()
    return Counts(total, trainable, trained_bytes if trainable < total else stored, stored)


def loaded(step: StepTrace) -> PhasePeak:
    """The weights, before the first step."""
    return replace(step.timeline.peak(*step.timeline.shown["load"]), op="weights")


def _extended(subject: Subject, error: Exception) -> tuple[Run, dict[str, PhasePeak]]:
    """Two short models on CPU tensors; every layer beyond them adds what the last one added.

    Exact where layers are alike and the peak is at the same place in both; the phase's op is that of the longer model.
    """
    key = next((k for k in _LAYER_KEYS if isinstance(subject.config.get(k), int)), None)
    if key is None or int(subject.config[key]) < MORE:
        raise InputError(f"the training step of {subject.id} cannot run: {error}") from error
    shortened = [replace(subject, config={**_shortened(subject.config, n), key: n}) for n in (FEW, MORE)]
    weights = transformers_model(shortened[-1].config, task_of(subject), "eager", DTYPES[subject.settings.dtype], "meta")
    if count(weights).weight_bytes > LARGEST_SHORT_MODEL_BYTES:
        raise InputError(
            f"the training step of {subject.id} does not run on the meta device, and {MORE} layers are too large to run with "
            f"values: {error}"
        ) from error
    try:
        few, more = (run_once(short, "cpu") for short in shortened)
    except CannotRunError as second:
        raise InputError(f"the training step of {subject.id} cannot run: {second}") from second
    further = int(subject.config[key]) - MORE

    def extend(a: int, b: int) -> int:
        return b + further * (b - a)

    counts = Counts(
        extend(few.counts.total, more.counts.total),
        extend(few.counts.trainable, more.counts.trainable),
        extend(few.counts.checkpoint_bytes, more.counts.checkpoint_bytes),
        extend(few.counts.weight_bytes, more.counts.weight_bytes),
    )
    phases = {}
    for name in ("load", *STEP_PHASES):
        a, b = ((loaded(run) if name == "load" else run.phases[name]) for run in (few.step, more.step))
        levels = tuple(extend(x, y) for x, y in zip(a.levels, b.levels, strict=True))
        phases[name] = PhasePeak(sum(levels), b.op, extend(a.end_bytes, b.end_bytes), levels)
    return replace(more, counts=counts), phases


def _shortened(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The config without lists of a value for each layer beyond those that are left."""
    per_layer: Sequence[str] = ("layer_types", "mlp_layer_types", "no_rope_layers")
    return {k: (v[:layers] if k in per_layer and isinstance(v, list) else v) for k, v in config.items()}
