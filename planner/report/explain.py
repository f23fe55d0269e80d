"""Any figure of an estimate: the formula, the numbers in it, and where the formula comes from."""

from collections.abc import Callable
from dataclasses import dataclass

from tuneplan.planner.estimate import Estimate
from tuneplan.planner.graph.tensor import BITS, CATEGORIES, elements
from tuneplan.planner.methods.formats import BLOCK_FORMATS, ROW_FORMATS
from tuneplan.planner.parallel.shards import gradient_bytes, weight_bytes
from tuneplan.planner.training.optimizers import state_bytes, step_scratch
from tuneplan.planner.units import format_gib

MOST_LINES = 12


@dataclass(frozen=True, slots=True)
class Explanation:
    """A figure taken apart.

    Attributes:
        figure: its name.
        value: as printed.
        formula: in words and symbols.
        numbers: what goes in, one line each.
        source: paper, equation or upstream file.
        basis: counted, modelled or calibrated.
    """

    figure: str
    value: str
    formula: str
    numbers: tuple[str, ...]
    source: str
    basis: str


def explain(estimate: Estimate, figure: str) -> Explanation:
    """Take one figure apart; `figure` is a key of EXPLAINERS."""
    return EXPLAINERS[figure](estimate)


def _weights(estimate: Estimate) -> Explanation:
    by_storage: dict[str, tuple[int, int]] = {}
    for p in estimate.network.parameters:
        count, size = by_storage.get(p.storage, (0, 0))
        by_storage[p.storage] = (count + p.numel, size + p.stored_bytes * p.count)
    lines = []
    for storage, (count, size) in by_storage.items():
        widths = BITS | {name: form.bits for name, form in BLOCK_FORMATS.items()} | {n: f.bits for n, f in ROW_FORMATS.items()}
        bits = widths[storage]
        scales = "" if storage in BITS else " plus scales and tables"
        lines.append(f"{count:,} parameters in {storage} ({bits} bits{scales}) = {format_gib(size)}")
    return Explanation(
        "weights",
        format_gib(estimate.components["weights"]),
        "sum over weights of parameters x bits / 8, each tensor rounded up to 512 bytes",
        (*lines, *_split(weight_bytes(estimate.network.parameters), estimate.request.sharding.weight_ranks)),
        "shapes: the model's transformers code; 4-bit formats: bitsandbytes 0.50 functional.py quantize_4bit",
        "counted",
    )


def _split(whole: int, ranks: int) -> tuple[str, ...]:
    """How model states are shared by the GPUs, where they are."""
    return (f"{format_gib(whole)} in all, split over {ranks} GPUs",) if ranks > 1 else ()


def _gradients(estimate: Estimate) -> Explanation:
    trained = [p for p in estimate.network.parameters if p.trainable]
    largest = sorted(trained, key=lambda p: -p.stored_bytes * p.count)[:MOST_LINES]
    return Explanation(
        "gradients",
        format_gib(gradient_bytes(trained)),
        "one value in the parameter's own dtype for every trained parameter, created by its first backward",
        (
            *[f"{p.count} x {p.name} {p.shape} {p.storage} = {format_gib(p.stored_bytes * p.count)}" for p in largest],
            *_split(gradient_bytes(trained), estimate.request.sharding.gradient_ranks),
        ),
        "torch AccumulateGrad (torch/csrc/autograd/functions/accumulate_grad.h)",
        "counted",
    )


def _optimizer(estimate: Estimate) -> Explanation:
    request = estimate.request
    optimizer = request.optimizer
    master = request.settings.precision == "master-weights"
    states = state_bytes(optimizer, estimate.network.parameters, master)
    kept = optimizer.state_dtype or ("fp32" if master else "the parameter's dtype")
    lines = [
        f"{optimizer.states} states a parameter, in {kept}",
        f"fp32 master copies: {'yes' if master else 'no'}",
        f"on the device {format_gib(states.device)}, in host memory {format_gib(states.host)}",
        f"held for a moment by an update: {format_gib(step_scratch(optimizer, estimate.network.parameters, master))}",
    ]
    formula = "states x trained parameters x bytes of a state"
    lines += _split(states.device, request.sharding.state_ranks)
    size = format_gib(estimate.components["optimizer_states"])
    return Explanation("optimizer_states", size, formula, tuple(lines), optimizer.source, "counted")


def _saved(estimate: Estimate) -> Explanation:
    """What autograd keeps of one layer, largest first."""
    lines = []
    for run in estimate.network.runs:
        seen: set[int] = set()
        kept: list[tuple[int, str]] = []
        for op in run.block.ops:
            for storage in op.saved:
                if id(storage) not in seen:
                    seen.add(id(storage))
                    kept.append((storage.nbytes, op.name))
        total = sum(size for size, _ in kept)
        how = "recomputed in the backward; only its input stays" if run.checkpointed else "kept for the backward"
        how = "recomputed in the backward from the output of the layer above; nothing stays" if run.reversible else how
        lines.append(f"{run.count} x {run.block.name}: {format_gib(total)} each, {how}")
        if run.block.name == "layer":
            lines += [f"    {format_gib(size)} {name}" for size, name in sorted(kept, reverse=True)[:MOST_LINES]]
    return Explanation(
        "activations",
        format_gib(estimate.components["activations"]),
        "sum over ops of the tensors that autograd saves, each storage once, that are live at the peak",
        tuple(lines),
        "torch 2.13 tools/autograd/derivatives.yaml for each op; ops mirror the model's transformers code",
        "counted",
    )


def _peak(estimate: Estimate) -> Explanation:
    levels = zip(CATEGORIES, estimate.memory.peak.levels, strict=True)
    return Explanation(
        "peak",
        format_gib(estimate.allocated_bytes),
        "the largest sum of live bytes over forward, loss, backward, clipping and optimizer step",
        (
            f"phase {estimate.memory.peak_phase}, op {estimate.memory.peak.op}",
            *[f"{name} {format_gib(size)}" for name, size in levels if size],
        ),
        "the ledger (planner/graph/ledger.py) under autograd's rules: torch/csrc/autograd/engine.cpp, input_buffer.cpp",
        "counted",
    )


def _component(name: str, formula: str) -> Callable[[Estimate], Explanation]:
    def take_apart(estimate: Estimate) -> Explanation:
        size = estimate.components[name]
        line = f"live at {estimate.memory.peak.op} in {estimate.memory.peak_phase}"
        source = "torch 2.13 tools/autograd/derivatives.yaml; temporaries of one C++ expression live to its end"
        return Explanation(name, format_gib(size), formula, (line,), source, "counted")

    return take_apart


def _reserved(estimate: Estimate) -> Explanation:
    difference = estimate.reserved_bytes - estimate.allocated_bytes
    return Explanation(
        "reserved",
        format_gib(estimate.reserved_bytes),
        "allocated peak + what the caching allocator holds beyond it when the step is replayed through its rules",
        (f"allocated {format_gib(estimate.allocated_bytes)}", f"fragmentation {format_gib(difference)}"),
        "c10/cuda/CUDACachingAllocator.cpp: 512-byte blocks, pools at 1 MiB, 2 MiB and 20 MiB segments, best fit",
        "modelled",
    )


def _runtime(estimate: Estimate) -> Explanation:
    runtime = estimate.runtime
    return Explanation(
        "runtime",
        format_gib(runtime.total_bytes),
        "CUDA context + loaded kernels and libraries + NCCL buffers, outside the allocator",
        (f"{format_gib(runtime.total_bytes)} in all",),
        runtime.basis,
        "calibrated",
    )


def _checkpoint(estimate: Estimate) -> Explanation:
    network = estimate.network
    adapters = sum(elements(p.shape) * p.count for p in network.parameters if p.adapter)
    return Explanation(
        "checkpoint",
        format_gib(estimate.checkpoint_bytes),
        "trained adapters alone where the base is frozen, else all weights; in the dtype they are kept in",
        (f"{network.trainable_parameters:,} trained parameters, {adapters:,} of them in adapters",),
        "transformers save_pretrained and peft save_pretrained (safetensors, header left out)",
        "counted",
    )


def _step(estimate: Estimate) -> Explanation:
    time = estimate.time
    if time is None or time.seconds is None:
        reason = time.reason if time else "no GPU was named (--gpu)"
        return Explanation("step", "unknown", "roofline over the ops", (reason,), "planner/timing", "modelled")
    lines = (
        f"forward {time.forward_seconds:.4f} s, recomputation {time.recompute_seconds:.4f} s",
        f"backward {time.backward_seconds:.4f} s, optimizer {time.optimizer_seconds:.4f} s",
        f"communication {time.communication_seconds:.4f} s; bound by {time.bound}",
        *time.notes,
    )
    return Explanation(
        "step",
        f"{time.seconds:.4f} s",
        "sum over ops of max(FLOPs / achieved rate, bytes / achieved bandwidth) + launches",
        lines,
        "Williams, Waterman, Patterson 2009, Roofline; efficiencies in planner/timing/constants.py with their sources",
        "modelled",
    )


EXPLAINERS: dict[str, Callable[[Estimate], Explanation]] = {
    "peak": _peak,
    "weights": _weights,
    "gradients": _gradients,
    "optimizer_states": _optimizer,
    "activations": _saved,
    "logits": _component("logits", "batch x length x vocabulary: logits, fp32 copy, log-softmax and their gradients"),
    "temporary": _component("temporary", "gradients of activations and scratch memory of the op at the peak"),
    "reserved": _reserved,
    "runtime": _runtime,
    "checkpoint": _checkpoint,
    "step": _step,
}
