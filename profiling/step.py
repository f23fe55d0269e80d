"""One training step after the other as transformers' Trainer runs them, with every storage tracked, on any device."""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from traceback import clear_frames
from typing import Any

import torch
from torch import nn

from tuneplan.planner.graph.tensor import GRADIENTS, KV_CACHE, OPTIMIZER_STATES, WEIGHTS
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling.autocast import CudaAutocast
from tuneplan.profiling.build import DTYPES, Built, Loss
from tuneplan.profiling.image_batches import GIVEN
from tuneplan.profiling.losses import LOSSES
from tuneplan.profiling.stand_ins import autocast_regions, cuda_dropout
from tuneplan.profiling.timeline import PhasePeak, Timeline
from tuneplan.profiling.tracker import StorageTracker, quantization_state

STEP_PHASES = ("forward", "backward", "optimizer_step")


@dataclass(frozen=True, slots=True)
class StepTrace:
    """What tracked steps needed.

    Attributes:
        phases: of the last step, which is a steady one, by name.
        timeline: of everything from the model's weights on.
    """

    phases: Mapping[str, PhasePeak]
    timeline: Timeline

    @property
    def peak_bytes(self) -> int:
        """Most live bytes over the step."""
        return max(phase.peak_bytes for phase in self.phases.values())

    @property
    def peak_phase(self) -> str:
        """The phase of that peak."""
        return max(self.phases, key=lambda name: self.phases[name].peak_bytes)


@contextmanager
def let_go() -> Iterator[None]:
    """After an error, what its frames hold is freed, whoever keeps the error.

    Before 2.13, torch leaves the hooks of a checkpoint whose forward failed in place for as long as a frame holds them; the next
    step in the process would run under them. On a device, those frames hold its memory too.
    """
    try:
        yield
    except BaseException as error:
        told: BaseException | None = error
        while told is not None:
            clear_frames(told.__traceback__)
            told = told.__cause__ or told.__context__
        raise


@contextmanager
def only_new_objects_searched() -> Iterator[None]:
    """Python's search for cycles passes over what exists already: the objects of a model and of its libraries.

    They are searched again and again otherwise: to build and trace LoRA of Llama-2-7B then takes 1.34 s instead of 1.11 (medians
    of six runs in turns, one thread of an AMD EPYC). What a process has frozen itself stays so.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@let_go()
def run_step(
    built: Built,
    settings: Settings,
    phase: Callable[[str], None],
    context: Callable[[], AbstractContextManager[object]],
    accumulation: int,
    kept: list[Any],
    loss: Loss | None,
) -> None:
    """Micro-batches, clipping and the update; `phase` is told where the program is.

    Args:
        built: model, optimizer and batch.
        settings: what the loop does.
        phase: called with "forward", "backward", "optimizer_step" and "end" as they begin.
        context: of every forward, such as autocast.
        accumulation: micro-batches before the update.
        kept: holds the model's outputs from one forward to the next if the loop keeps them.
        loss: (model, token ids, labels) -> scalar; None for the model's own.
    """
    model, batch = built.model, built.batch
    trained = [p for p in model.parameters() if p.requires_grad]
    for _ in range(accumulation):
        phase("forward")
        with context():
            if loss is not None:
                value = loss(model, batch["input_ids"], batch["labels"])
            elif settings.keep_outputs:
                kept[:] = [model(**batch)]
                value = kept[0].loss
            else:
                value = model(**batch).loss
        phase("backward")
        value.backward()
        del value
    phase("optimizer_step")
    if settings.max_grad_norm:
        nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
    built.optimizer.step()
    phase("end")
    built.optimizer.zero_grad(set_to_none=True)


@only_new_objects_searched()
def trace_step(
    built: Built,
    settings: Settings,
    *,
    accumulation: int = 1,
    loss: Loss | None = None,
    batches: Sequence[Mapping[str, torch.Tensor]] = (),
    make_tracker: Callable[..., StorageTracker] = StorageTracker,
) -> StepTrace:
    """Run training steps and track them all; the last is the steady one, when optimizer state exists.

    Args:
        built: model, optimizer and batch on any device but CUDA.
        settings: how a step is run.
        accumulation: micro-batches before an update.
        loss: instead of the one that `settings.loss` names.
        batches: inputs of one step after the other where they differ; by default the built batch, twice.
        make_tracker: what records.
    """
    model = built.model
    device = next(iter(built.batch.values())).device.type
    tracker = make_tracker(device, vocabulary=_vocabulary(model), answer=0 if settings.padded else 1)
    tracker.places = built.places
    tracker.name_modules(model)
    tracker.watch(model.parameters(), category=WEIGHTS)
    tracker.watch(model.buffers(), category=WEIGHTS)
    tracker.watch(quantization_state(model), category=WEIGHTS)
    tracker.overlook(tensor for name, tensor in built.batch.items() if name in GIVEN)
    tracker.watch(built.batch.values(), op="batch", category=0)
    phase_of: dict[str, int] = {}

    def phase(name: str) -> None:
        if name == "end":
            tracker.classify(_states(built.optimizer), OPTIMIZER_STATES)
        elif name == "optimizer_step":
            tracker.classify([p.grad for p in model.parameters()], GRADIENTS)
        elif name == "backward" and kept:
            tracker.classify(_tensors(getattr(kept[0], "past_key_values", None)), KV_CACHE)
        phase_of[name] = tracker.live_bytes
        tracker.phase = name

    kept: list[Any] = []
    autocast = CudaAutocast(DTYPES[settings.autocast], tracker) if settings.autocast else None
    chosen = loss or LOSSES[settings.loss]
    with cuda_dropout(), autocast_regions(), tracker, autocast or nullcontext():
        for batch in batches or (built.batch, built.batch):
            built.batch = dict(batch)
            tracker.watch(batch.values(), op="batch", category=0)
            run_step(built, settings, phase, autocast.region if autocast else nullcontext, accumulation, kept, chosen)
    timeline = Timeline.of(tracker)
    return StepTrace({name: timeline.peak(*timeline.shown[name]) for name in STEP_PHASES}, timeline)


def _vocabulary(model: Any) -> int:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    weight = getattr(head, "weight", None)
    return int(getattr(head, "out_features", weight.shape[0])) if isinstance(weight, torch.Tensor) else 0


def _states(optimizer: Any) -> Iterable[torch.Tensor]:
    for state in optimizer.state.values():
        yield from _tensors(state)


def _tensors(thing: Any) -> Iterator[torch.Tensor]:
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, Mapping):
        for value in thing.values():
            yield from _tensors(value)
    elif isinstance(thing, list | tuple):
        for value in thing:
            yield from _tensors(value)
    elif hasattr(thing, "layers"):  # a cache of transformers
        for layer in thing.layers:
            yield from _tensors([getattr(layer, "keys", None), getattr(layer, "values", None)])
