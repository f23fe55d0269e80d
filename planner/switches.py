"""The switches of a configuration: what can be set otherwise without another model, method or card, one at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from tuneplan.hardware_profiles.records import Gpu
from tuneplan.planner.methods.compose import describe
from tuneplan.planner.methods.method import Method
from tuneplan.planner.methods.part import Part
from tuneplan.planner.methods.quantized_base import QuantizedBase
from tuneplan.planner.methods.targeted import ALL_LINEAR
from tuneplan.planner.models.registry import has_flash
from tuneplan.planner.models.spec import CAUSAL_LM
from tuneplan.planner.request import Request
from tuneplan.planner.training.attention_kernel import AMPERE
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import OURS, Settings

SAME = "same training"
ROUNDING = "fewer bits"
TRAINING = "other training"
EFFECTS = (SAME, ROUNDING, TRAINING)

SHORTEST = 256
FEWER_TARGETS = ("q_proj", "v_proj")
"""The modules that LoRA adapted first (Hu et al. 2021, section 4.2)."""
NARROW_ADAPTERS = "keep adapters in 16 bits (autocast_adapter_dtype=false)"
FUSED_LOSS = "liger"


@dataclass(frozen=True, slots=True)
class Switch:
    """One thing set otherwise.

    Attributes:
        name: a short key.
        words: what to do, as an instruction.
        effect: one of EFFECTS. SAME computes the same updates in another order or place, ROUNDING keeps something in fewer
            bits, TRAINING trains other weights or on other sequences.
        request: the configuration with it.
    """

    name: str
    words: str
    effect: str
    request: Request


def switches(request: Request) -> Iterator[Switch]:
    """Every switch that the configuration has not thrown yet."""
    settings, method = request.settings, request.method
    narrow = narrow_adapters(method, settings)
    if narrow is not None:
        yield Switch("bf16_adapters", NARROW_ADAPTERS, ROUNDING, replace(request, method=narrow))
    if settings.gradient_checkpointing == "off":
        yield Switch(
            "checkpointing", "turn gradient checkpointing on", SAME, _with(request, gradient_checkpointing="non-reentrant")
        )
    else:
        yield Switch("no_checkpointing", "turn gradient checkpointing off", SAME, _with(request, gradient_checkpointing="off"))
    if settings.loss == "eager" and request.spec.task == CAUSAL_LM:
        yield Switch("fused_loss", f"use --loss {FUSED_LOSS}", SAME, _with(request, loss=FUSED_LOSS))
    if flash_runs(settings) and settings.attention != "flash" and has_flash(request.spec):
        yield Switch("flash_attention", "use --attention flash", SAME, _with(request, attention="flash"))
    yield from _optimizers(request)
    if settings.padded:
        yield Switch("packing", "pack sequences instead of padding them (no --padded)", SAME, _with(request, padded=False))
    if not request.expandable_segments:
        words = "set PYTORCH_ALLOC_CONF=expandable_segments:True"
        yield Switch("expandable_segments", words, SAME, replace(request, expandable_segments=True))
    if settings.kernels != OURS and decodes(method) and measured(request.gpu):
        words = f"patch the model with tuneplan.kernels.patch (--kernels {OURS})"
        yield Switch("kernels", words, SAME, _with(request, kernels=OURS))
    yield from _shorter(request)
    fewer = fewer_targets(method)
    if fewer is not None:
        words = f"adapt {' and '.join(FEWER_TARGETS)} alone (--target-modules {','.join(FEWER_TARGETS)})"
        yield Switch("fewer_targets", words, TRAINING, replace(request, method=fewer))


def narrow_adapters(method: Method, settings: Settings) -> Method | None:
    """The method with adapters in the model's 16 bits, which PEFT otherwise keeps in fp32; None where none are."""
    if settings.dtype == "fp32":
        return None
    return _changed(method, "autocast_adapter_dtype", True, False)


def fewer_targets(method: Method) -> Method | None:
    """The method on the modules of FEWER_TARGETS alone; None where it does not adapt every linear module."""
    return _changed(method, "target_modules", (ALL_LINEAR,), FEWER_TARGETS)


def decodes(method: Method) -> bool:
    """Whether 4-bit weights are dequantized in the step."""
    return any(isinstance(part, QuantizedBase) and part.quant_type in ("nf4", "fp4") for part in method.parts)


def measured(gpu: Gpu | None) -> bool:
    """Whether the dequantization of `tuneplan.kernels` was measured on a card."""
    speeds = gpu.calibration.kernels if gpu is not None and gpu.calibration is not None else None
    return speeds is not None and OURS in speeds.dequantize_4bit


def flash_runs(settings: Settings) -> bool:
    """Whether FlashAttention-2 has a kernel for the dtype and the card."""
    return settings.dtype != "fp32" and settings.compute_capability >= AMPERE


def _optimizers(request: Request) -> Iterator[Switch]:
    """AdamW that keeps less: without foreach's copy, with 8-bit states, with paged ones."""
    now = request.optimizer
    if "adamw" not in now.name:
        return
    eight = "8bit" in now.name
    names = (["adamw_fused"] if now.name == "adamw" else []) + ([] if eight else ["adamw_8bit"])
    for name in names + ([] if now.paged else ["paged_adamw_8bit"]):
        effect = ROUNDING if "8bit" in name and not eight else SAME
        yield Switch(name, f"use --optimizer {name}", effect, replace(request, optimizer=OPTIMIZERS[name]))


def _shorter(request: Request) -> Iterator[Switch]:
    """The same tokens an update in twice as many sequences of half the length."""
    length = request.settings.seq_len // 2
    if length >= SHORTEST:
        steps = 2 * request.gradient_accumulation_steps
        shorter = replace(_with(request, seq_len=length, accumulating=True), gradient_accumulation_steps=steps)
        yield Switch("shorter_sequences", f"use --seq-len {length}, twice as many sequences", TRAINING, shorter)


def _changed(method: Method, option: str, old: object, new: object) -> Method | None:
    """The method with one option changed wherever it has the old value; None where it nowhere has."""
    parts = [replace(p, **{option: new}) if _has(p, option, old) else p for p in method.parts]
    return None if tuple(parts) == method.parts else Method(describe(parts), tuple(parts))


def _has(part: Part, option: str, value: object) -> bool:
    return any(f.name == option for f in fields(part)) and getattr(part, option) == value


def _with(request: Request, **changes: Any) -> Request:
    return replace(request, settings=replace(request.settings, **changes))
