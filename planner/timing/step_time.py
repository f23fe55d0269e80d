"""Seconds of one training step, and tokens per second: the first model of the clock, marked `modelled` in reports.

A step is `gradient_accumulation_steps` forwards and backwards, one reduction of gradients and one update. Not counted:
data loading, logging, checkpoint saving, evaluation, stragglers.
"""

from dataclasses import dataclass

from tuneplan.hardware_profiles.records import Gpu
from tuneplan.planner.graph.tensor import BITS, Size
from tuneplan.planner.models.network import Network
from tuneplan.planner.timing import collectives
from tuneplan.planner.timing.layout_time import Machines, spread
from tuneplan.planner.timing.optimizer_step import update_bytes
from tuneplan.planner.timing.roofline import Rates, device_seconds, gpu_rates, host_seconds, larger, started
from tuneplan.planner.timing.work import NetworkWork, network_work
from tuneplan.planner.training.optimizers import Optimizer
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding


@dataclass(frozen=True, slots=True)
class StepTime:
    """One optimizer step of all ranks.

    Attributes:
        seconds: of the step; None if it cannot run or the card's rates are not known, and then `reason` says why.
        tokens_per_second: over all ranks.
        forward_seconds: device time of all forwards.
        recompute_seconds: of the forwards that gradient checkpointing runs again.
        backward_seconds: of all backwards, accumulation of gradients included.
        optimizer_seconds: of clipping and the update, paged states included.
        communication_seconds: that the step waits for; what runs behind computation is not in it.
        flops: matrix-multiply FLOPs of one rank, recomputation included.
        moved_bytes: bytes that one rank reads and writes in device memory.
        launches: kernels that one rank starts.
        launch_share: time to start all kernels over the step's seconds; 1 if the step is launch-bound.
        mfu: FLOPs without recomputation, over what the peak dense rate of the model's dtype would do in the time.
        bound: "compute", "memory", "launch" or "communication": what takes the largest part.
        notes: what was assumed.
        reason: why there is no time.
    """

    seconds: float | None
    tokens_per_second: float | None = None
    forward_seconds: float = 0.0
    recompute_seconds: float = 0.0
    backward_seconds: float = 0.0
    optimizer_seconds: float = 0.0
    communication_seconds: float = 0.0
    flops: Size = 0
    moved_bytes: Size = 0
    launches: int = 0
    launch_share: float = 0.0
    mfu: float = 0.0
    bound: str = ""
    notes: tuple[str, ...] = ()
    reason: str = ""


def step_time(
    network: Network,
    settings: Settings,
    optimizer: Optimizer,
    gpu: Gpu,
    *,
    data_parallel: int = 1,
    zero_stage: int = 0,
    gradient_accumulation_steps: int = 1,
    interconnect: str | None = None,
    work: NetworkWork | None = None,
    layout: Sharding | None = None,
    machines: Machines | None = None,
    experts_per_token: int = 0,
) -> StepTime:
    """Time one step of all ranks.

    Args:
        network: the model under its method.
        settings: of the run; `accumulating` has no effect, `gradient_accumulation_steps` decides.
        optimizer: of the registry.
        gpu: each of the cards.
        data_parallel: ranks, each with its own micro-batches.
        zero_stage: 0 DDP, 1 to 3 ZeRO (3 is also FSDP full shard).
        gradient_accumulation_steps: micro-batches of each rank in a step.
        interconnect: "pcie" if the machine does not join its cards by NVLink; None takes the card's best link.
        work: `network_work(network, settings)`, where the caller times the same network on many cards.
        layout: takes the place of `data_parallel` and `zero_stage`; the network is then that of one rank.
        machines: over which the ranks lie; None for one machine.
        experts_per_token: of a mixture of experts.
    """
    layout = layout if layout is not None else Sharding(data_parallel, zero_stage)
    machines = machines if machines is not None else Machines(layout.gpu_count, interconnect=interconnect)
    data_parallel, zero_stage = layout.data_parallel, layout.zero_stage
    work = network_work(network, settings) if work is None else work
    phases = (work.forward, work.recompute, work.backward)
    rates = gpu_rates(
        gpu, {settings.autocast or settings.dtype} | {p.dtype for phase in phases for p in phase.products}, settings.kernels
    )
    if rates.reason:
        return StepTime(None, reason=rates.reason)
    n = gradient_accumulation_steps
    forward, recompute, backward = (device_seconds(phase, rates) for phase in phases)
    added = accumulation_seconds(network, rates, n)
    ranks = data_parallel
    master = settings.precision == "master-weights"
    shards = ranks if zero_stage else 1
    update = update_bytes(optimizer, network.parameters, master, settings.max_grad_norm > 0, shards)
    streamed = update.moved / rates.memory
    optimizer_seconds = streamed + collectives.copy_seconds(update.paged, gpu)
    if "optimizer" in layout.offload:
        optimizer_seconds = 0.0
    more = spread(network, layout, gpu, machines, experts_per_token)
    computed = (n + more.filling) * (forward.total + recompute.total + backward.total) + added
    sent = collectives.data_parallel_bytes(network, ranks, zero_stage, layout.engine_used)
    link = machines.link(gpu, layout.gpu_count)
    rate = link.rate(collectives.operation(zero_stage), sent.message_bytes, ranks)
    waited, notes = _communication(link.note, rate, sent, n, computed, layout.gpu_count <= machines.gpus)
    waited += n * more.micro_batch_seconds + more.step_seconds
    notes += more.notes
    if update.paged:
        notes += ("paged optimizer states cross PCIe in every step; with memory to spare they stay on the device",)
    ahead, again, behind = (started(phase, rates) for phase in phases)
    launches = n * (ahead + again + behind) + update.launches
    host = host_seconds(n * (ahead + again) + update.launches, n * behind, rates)
    device = computed + optimizer_seconds + waited
    seconds = larger(device, host)
    spent = (forward, recompute, backward)
    parts = {
        "compute": n * sum(s.compute for s in spent),
        "memory": n * sum(s.memory for s in spent) + added + optimizer_seconds,
        "communication": waited,
        "launch": n * sum(s.gaps for s in spent),
    }
    useful = n * (work.forward.flops + work.backward.flops)
    peak = gpu.peak_flops(settings.autocast or settings.dtype) or 0
    return StepTime(
        seconds=seconds,
        tokens_per_second=n * ranks * settings.sequences * settings.seq_len / seconds,
        forward_seconds=n * forward.total,
        recompute_seconds=n * recompute.total,
        backward_seconds=n * backward.total + added,
        optimizer_seconds=optimizer_seconds,
        communication_seconds=waited,
        flops=useful + n * work.recompute.flops,
        moved_bytes=n * sum(phase.total_moved for phase in phases) + update.moved,
        launches=launches,
        launch_share=host / seconds,
        mfu=useful / (seconds * peak) if peak else 0.0,
        bound=_bound(parts, device, host),
        notes=rates.notes + notes,
    )


def accumulation_seconds(network: Network, rates: Rates, steps: Size) -> float:
    """Seconds of adding the gradients of weights to those of the micro-batches before."""
    trained = sum(p.numel * BITS[p.storage] // 8 for p in network.parameters if p.trainable)
    return (steps - 1) * 3 * trained / rates.memory


def _communication(
    note: str, bytes_per_second: float, sent: collectives.Traffic, steps: int, window: float, near: bool
) -> tuple[float, tuple[str, ...]]:
    nbytes = steps * sent.each_micro_batch + sent.each_step
    if not nbytes:
        return 0.0, ()
    waited = collectives.exposed_seconds(nbytes / bytes_per_second, window)
    return waited, (f"ranks talk over {note}; {'one machine' if near else 'several machines'}",)


def _bound(parts: dict[str, float], device: float, host: float) -> str:
    """What takes the largest part of the step (of the first configuration, for arrays)."""
    if _first(host) > _first(device):
        return "launch"
    return max(parts, key=lambda name: _first(parts[name]))


def _first(value: float) -> float:
    return float(value) if isinstance(value, (int, float)) else float(value.flat[0])
