"""What a user should know about an estimate, each figure worked out by running the ledger again with one thing changed."""

from dataclasses import replace
from typing import Any

from tuneplan.planner.estimate import Estimate
from tuneplan.planner.memory import step_memory, walk
from tuneplan.planner.methods.full import Full
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import has_flash
from tuneplan.planner.parallel.step import joined
from tuneplan.planner.request import Request
from tuneplan.planner.switches import flash_runs, measured, narrow_adapters
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import BITSANDBYTES, LOOP
from tuneplan.planner.units import GIB, format_gib

WORTH_SAYING = GIB // 4


def warnings(estimate: Estimate) -> tuple[str, ...]:
    """Warnings, most important first."""
    request = estimate.request
    texts = [
        *(request.config.config.warnings if request.config else ()),
        *_capacity(estimate),
        *([request.spec.note] if request.spec.note else []),
        *([estimate.network.notes["assumed"]] if "assumed" in estimate.network.notes else []),
        *_experts(estimate),
        *_kernel(estimate),
        *_dequantization(estimate),
        *_adapter_inputs(estimate),
        *_readings(estimate),
        *_context(request),
        *_not_modelled(request),
    ]
    return tuple(texts)


def _experts(estimate: Estimate) -> list[str]:
    """What a mixture of experts is stored in, and how its experts run."""
    notes = estimate.network.notes
    if "experts_implementation" not in notes:
        return []
    texts = [notes["router_loss"]] if "router_loss" in notes else []
    stacked = [p for p in estimate.network.parameters if p.name.rpartition(".")[0].endswith(".experts") and len(p.shape) == 3]
    if estimate.network.quantized and stacked:
        size = sum(p.stored_bytes * p.count for p in stacked)
        widened = ", cast to fp32 by prepare_model_for_kbit_training (prepare_kbit=false leaves them)"
        texts.append(
            f"The experts stay dense and take {format_gib(size)}{widened if stacked[0].storage == 'fp32' else ''}: transformers "
            "keeps all experts of a layer in one parameter, and bitsandbytes quantizes linear modules alone."
        )
    settings = estimate.request.settings
    if settings.experts == LOOP:
        texts.append(
            "experts eager runs one expert after the other, so memory depends on which experts the tokens choose: figures are "
            f"for {'tokens spread evenly' if settings.routing == 'even' else 'all tokens on the same experts'} (--routing). "
            "Where experts are trained, the backward makes a gradient of all experts of a layer for each of them, not once."
        )
    elif settings.routing == "worst" and estimate.request.sharding.expert_parallel == 1:
        texts.append(
            "routing worst is even here: without --expert-parallel every rank has all experts, and computes as many rows "
            "whichever they choose."
        )
    if any(p.adapter and ".experts." in p.name for p in estimate.network.parameters):
        texts.append(
            "LoRA on experts makes the adapted weights of all experts of a layer dense in every forward (PEFT's wrapper of "
            "parameters); target_modules of the attention alone avoid it."
        )
    return texts


def _dequantization(estimate: Estimate) -> list[str]:
    """How a patched model is counted, and what is not known of its kernels."""
    request = estimate.request
    if request.settings.kernels == BITSANDBYTES:
        return []
    texts = ["kernels tuneplan: LoRA layers count one by one; those that share an input (q, k, v; gate, up) hold and read less."]
    if request.gpu is not None and not measured(request.gpu):
        texts.append(f"The kernels of tuneplan are not measured on {request.gpu.name} yet: their time counts as bitsandbytes'.")
    return texts


def peak_of(request: Request) -> int:
    """Allocated peak of a request, bytes."""
    network = build(request.spec, request.method, request.settings)
    return step_memory(network, request.settings, request.optimizer, request.sharding).peak.peak_bytes


def activations_of(request: Request) -> int:
    """Bytes that the forward leaves for the backward: what is live at its end, less weights, gradients and states."""
    network = build(request.spec, request.method, request.settings)
    forward, _ = joined(walk(network, request.settings))
    return sum(forward.delta)


def _capacity(estimate: Estimate) -> list[str]:
    request = estimate.request
    texts = []
    if request.capacity_bytes is not None and estimate.device_bytes > request.capacity_bytes:
        short = estimate.device_bytes - request.capacity_bytes
        texts.append(f"Does not fit: short by {format_gib(short)} of {format_gib(request.capacity_bytes)} usable.")
    gpu = request.gpu
    if gpu is not None and not gpu.memory_is_measured:
        texts.append(f"The capacity of {gpu.name} is its label, not what a driver reported; expect a little less.")
    if estimate.time is not None and estimate.time.seconds is None:
        texts.append(f"No time: {estimate.time.reason}")
    return texts


def _kernel(estimate: Estimate) -> list[str]:
    """Cases where sdpa does not run flash: which kernel, why, and what it costs."""
    request, notes = estimate.request, estimate.network.notes
    if request.settings.attention != "sdpa" or notes.get("attention_kernel") == "flash":
        return []
    runs = flash_runs(request.settings) and has_flash(request.spec)
    saved = estimate.allocated_bytes - peak_of(_with(request, attention="flash")) if runs else 0
    cost = f" FlashAttention-2 would save {format_gib(saved)}." if saved > WORTH_SAYING else ""
    kernel = {"math": "unfused math", "efficient": "memory-efficient", "eager": "written-out"}[notes["attention_kernel"]]
    return [f"sdpa runs its {kernel} kernel here, because {notes['attention_kernel_reason']}.{cost}"]


def _adapter_inputs(estimate: Estimate) -> list[str]:
    """PEFT's fp32 adapters make a fp32 copy of the input of every adapted module."""
    request = estimate.request
    narrow = narrow_adapters(request.method, request.settings)
    if narrow is None:
        return []
    saved = estimate.allocated_bytes - peak_of(replace(request, method=narrow))
    if saved < WORTH_SAYING:
        return []
    text = (
        "PEFT keeps adapters in fp32, so each adapted module copies its input to fp32; "
        f"autocast_adapter_dtype=False saves {format_gib(saved)}."
    )
    held = activations_of(request)
    full = activations_of(replace(request, method=Method("full", (Full(),))))
    if held > full:
        text += f" Activations after the forward are {format_gib(held)}, more than the {format_gib(full)} of full fine-tuning."
    return [text]


def _readings(estimate: Estimate) -> list[str]:
    """The several readings of "bf16 AdamW": which one this is, and what the others would take."""
    request = estimate.request
    if request.settings.dtype == "fp32" or not request.optimizer.name.startswith(("adamw", "paged_adamw")):
        return []
    pure = _with(request, precision="pure")
    candidates = {
        f"states in {request.settings.dtype} with foreach's copy": replace(pure, optimizer=OPTIMIZERS["adamw"]),
        f"states in {request.settings.dtype}, fused": replace(pure, optimizer=OPTIMIZERS["adamw_fused"]),
        "fp32 master weights and states": replace(
            _with(request, precision="master-weights"), optimizer=OPTIMIZERS["adamw_fused"]
        ),
        "8-bit states": replace(pure, optimizer=OPTIMIZERS["adamw_8bit"]),
    }
    network = estimate.network
    peaks = {label: step_memory(network, r.settings, r.optimizer, r.sharding).peak.peak_bytes for label, r in candidates.items()}
    if max(peaks.values()) - min(peaks.values()) < WORTH_SAYING:
        return []
    states = "master weights" if request.settings.precision == "master-weights" else f"states in {request.settings.dtype}"
    listed = "; ".join(f"{label} {format_gib(size)}" for label, size in peaks.items())
    return [f"AdamW here is {request.optimizer.name} with {states}. Peak by reading: {listed}."]


def _context(request: Request) -> list[str]:
    longest = request.spec.max_position_embeddings
    if request.settings.seq_len <= longest:
        return []
    return [f"{request.settings.seq_len} tokens are more than the {longest} that the model's config allows."]


def _not_modelled(request: Request) -> list[str]:
    objective, texts = request.settings.objective, []
    if objective.name == "grpo":
        texts.append("Time is that of forward, backward and update; generating and scoring completions comes on top.")
    if objective.name == "dpo" and objective.reference != "precomputed":
        texts.append("Time is that of forward, backward and update; the reference's forward comes on top.")
    window = getattr(request.spec, "sliding_window", None)
    if window is not None and window < request.settings.seq_len:
        texts.append(f"The model attends to a window of {window} tokens; time is counted as for full attention.")
    return texts


def _with(request: Request, **changes: Any) -> Request:
    return replace(request, settings=replace(request.settings, **changes))
