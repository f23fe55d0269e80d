"""The real training step without a GPU: transformers and PEFT code on the meta device, every storage tracked.

No weight exists and no value is computed; shapes, dtypes and lifetimes are those of the real code.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tuneplan.profiling import attention
from tuneplan.profiling.build import causal_model
from tuneplan.profiling.tracker import Event, StorageTracker

ABSMAX_BLOCK = 64
NESTED_BLOCK = 256


@dataclass(frozen=True, slots=True)
class PhasePeak:
    """Most live bytes in a phase, the operator that reached them, and what is left at its end [bytes]."""

    peak_bytes: int
    op: str
    end_bytes: int


@dataclass(frozen=True, slots=True)
class StepTrace:
    """What a traced step needed, by phase ("forward", "backward", "optimizer_step"), in its steady state."""

    phases: Mapping[str, PhasePeak]
    events: list[Event] = field(repr=False)

    @property
    def peak_bytes(self) -> int:
        """Most live bytes over the step."""
        return max(phase.peak_bytes for phase in self.phases.values())


def meta_model(
    config: Mapping[str, Any],
    kernel: str = attention.FLASH,
    dtype: torch.dtype = torch.bfloat16,
    use_cache: bool = False,
    device: str = "meta",
) -> nn.Module:
    """The causal language model of a config.json on the meta device, in training mode.

    Args:
        config: contents of a config.json; `model_type` names the architecture.
        kernel: an attention implementation of transformers, or one of `attention` with the memory of a CUDA kernel.
        dtype: of all parameters.
        use_cache: keep keys and values, as a model does unless a trainer turns it off.
        device: another one, for code that asks for values.
    """
    attention.register()
    return causal_model(config, kernel, dtype, device, use_cache)


def quantize_4bit(model: Any, compute_dtype: torch.dtype, quant_type: str = "nf4", nested: bool = True) -> None:
    """Replace every linear layer but the head by bitsandbytes' `Linear4bit` with packed weights on the meta device."""
    import bitsandbytes as bnb

    for module in list(model.modules()):
        for child_name, child in list(module.named_children()):
            if not isinstance(child, nn.Linear) or child_name == "lm_head":
                continue
            layer = bnb.nn.Linear4bit(
                child.in_features,
                child.out_features,
                bias=child.bias is not None,
                compute_dtype=compute_dtype,
                compress_statistics=nested,
                quant_type=quant_type,
                device="meta",
            )
            if child.bias is not None:
                layer.bias = child.bias
            layer.weight = _packed(child.out_features, child.in_features, compute_dtype, quant_type, nested, layer)
            setattr(module, child_name, layer)
    model.is_loaded_in_4bit = True
    model.is_quantized = True


def _packed(rows: int, columns: int, dtype: torch.dtype, quant_type: str, nested: bool, layer: nn.Module) -> Any:
    import bitsandbytes as bnb
    from bitsandbytes.functional import QuantState

    def empty(size: int, kind: torch.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=kind, device="meta")

    count = rows * columns
    blocks = -(-count // ABSMAX_BLOCK)
    state2 = None
    if nested:
        state2 = QuantState(
            absmax=empty(-(-blocks // NESTED_BLOCK), torch.float32),
            code=empty(256, torch.float32),
            blocksize=NESTED_BLOCK,
            dtype=torch.float32,
        )
    state = QuantState(
        absmax=empty(blocks, torch.uint8 if nested else torch.float32),
        shape=torch.Size((rows, columns)),
        code=empty(16, torch.float32),
        blocksize=ABSMAX_BLOCK,
        quant_type=quant_type,
        dtype=dtype,
        offset=torch.empty((), dtype=torch.float32, device="meta") if nested else None,
        state2=state2,
    )
    weight = bnb.nn.Params4bit(
        torch.empty((-(-count // 2), 1), dtype=torch.uint8, device="meta"),
        requires_grad=False,
        quant_state=state,
        quant_type=quant_type,
        compress_statistics=nested,
        bnb_quantized=True,
        module=layer,
    )
    layer.quant_state = state
    return weight


def quantization_state(model: nn.Module) -> Iterator[torch.Tensor]:
    """Tensors of bitsandbytes' quantization state, which are neither parameters nor buffers."""
    for module in model.modules():
        state = getattr(module, "quant_state", None)
        while state is not None:
            for name in ("absmax", "code", "offset"):
                tensor = getattr(state, name, None)
                if isinstance(tensor, torch.Tensor):
                    yield tensor
            state = state.state2


@contextmanager
def cuda_dropout() -> Iterator[None]:
    """Dropout as CUDA runs it: one fused kernel that keeps a boolean mask, where other devices keep the noise."""
    original = nn.functional.dropout

    def fused(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        return torch.native_dropout(input, p, True)[0] if training and p else input

    nn.functional.dropout = fused
    try:
        yield
    finally:
        nn.functional.dropout = original


def trace_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batch_size: int,
    seq_len: int,
    *,
    accumulation: int = 1,
    loss: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    keep_outputs: bool = False,
    device: str = "meta",
) -> StepTrace:
    """Run two training steps as transformers' Trainer does and trace the second, when optimizer state exists.

    Args:
        model: on the meta device.
        optimizer: over the model's trained parameters.
        micro_batch_size: sequences.
        seq_len: tokens of each.
        accumulation: micro-batches before the update; the last one is traced.
        loss: (model, token ids, labels) -> scalar; by default the model's own.
        keep_outputs: hold the model's outputs until the next forward is over, as a loop that writes `outputs = model(...)`.
        device: where the model is; "cpu" for code that asks for values.
    """
    ids = torch.zeros(micro_batch_size, seq_len, dtype=torch.long, device=device)
    labels = ids.clone()
    outputs = None
    tracker = StorageTracker(device)
    tracker.watch(model.parameters())
    tracker.watch(model.buffers())
    tracker.watch(quantization_state(model))
    tracker.watch([ids, labels])
    phases: dict[str, PhasePeak] = {}
    with cuda_dropout(), tracker:
        for _ in range(2):
            for _ in range(accumulation):
                tracker.events.clear()
                tracker.phase = "forward"
                if loss is not None:
                    value = loss(model, ids, labels)
                elif keep_outputs:
                    outputs = model(input_ids=ids, labels=labels)
                    value = outputs.loss
                else:
                    value = model(input_ids=ids, labels=labels).loss
                forward = tracker.live_bytes
                tracker.phase = "backward"
                value.backward()
                value = value.detach()
                backward = tracker.live_bytes
            tracker.phase = "optimizer_step"
            optimizer.step()
            update = tracker.live_bytes
            optimizer.zero_grad(set_to_none=True)
    del outputs
    for name, end in (("forward", forward), ("backward", backward), ("optimizer_step", update)):
        peak = tracker.peak(name) if any(e.phase == name for e in tracker.events) else None
        phases[name] = PhasePeak(peak.live_bytes if peak else end, peak.op if peak else "", end)
    return StepTrace(phases, tracker.events)
