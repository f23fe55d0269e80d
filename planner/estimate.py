"""The estimate of one configuration: memory from the ledger, reserved and process memory, time, checkpoint, warnings."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tuneplan.planner.device_memory import RuntimeMemory, checkpoint_bytes, runtime_of
from tuneplan.planner.errors import InputError
from tuneplan.planner.fragmentation import allowance, moving_bytes
from tuneplan.planner.graph.tensor import CATEGORIES
from tuneplan.planner.host_memory import HostMemory, host_memory
from tuneplan.planner.memory import StepMemory
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.parallel.layout import rank_memory
from tuneplan.planner.replay import ENOUGH_LAYERS, Replay, replay
from tuneplan.planner.request import Request
from tuneplan.planner.timing.request_time import time_of
from tuneplan.planner.timing.step_time import StepTime
from tuneplan.planner.training.objective import for_method
from tuneplan.planner.uncertainty import Interval, interval

if TYPE_CHECKING:
    from tuneplan.planner.savings import Saving

STACK = "transformers 5.23, peft 0.21, bitsandbytes 0.50, torch 2.13 (plain, Trainer order of calls)"


@dataclass(frozen=True, slots=True)
class Estimate:
    """Everything that is known of one configuration.

    Attributes:
        request: what was asked.
        network: the model under its method.
        memory: allocated bytes by phase.
        reserved_bytes: what the caching allocator holds at most.
        runtime: what the process holds outside the allocator.
        host: host memory of the fullest node, and disk.
        checkpoint_bytes: of what is saved.
        time: of a whole step (all micro-batches and the update), None without a GPU.
        warnings: what the user should know, most important first.
        savings: what each switch would save or cost, the one that gains most first.
        stage_peaks: allocated peak of each pipeline stage, where there are several.
    """

    request: Request
    network: Network
    memory: StepMemory
    reserved_bytes: int
    runtime: RuntimeMemory
    host: HostMemory
    checkpoint_bytes: int
    time: StepTime | None
    warnings: tuple[str, ...] = ()
    savings: "tuple[Saving, ...]" = ()
    stage_peaks: tuple[int, ...] = ()

    @property
    def host_bytes(self) -> int:
        """Most host memory of the fullest node."""
        return self.host.peak_bytes

    @property
    def allocated_bytes(self) -> int:
        """Peak of live bytes."""
        return self.memory.peak.peak_bytes

    @property
    def device_bytes(self) -> int:
        """Peak that the driver sees: reserved and runtime."""
        return self.reserved_bytes + self.runtime.total_bytes

    @property
    def components(self) -> dict[str, int]:
        """Live bytes at the peak by category, and the runtime beside them."""
        levels = dict(zip(CATEGORIES, self.memory.peak.levels, strict=True))
        return {**levels, "runtime": self.runtime.total_bytes}

    @property
    def source(self) -> str:
        """Where the bytes come from, in a word."""
        return "estimated" if self.network.recorded is None else "traced"

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON document (design: common schema of estimated, traced and measured)."""
        time = self.time
        return {
            "source": self.source,
            "request": self.request.to_json(),
            "parameters": {
                "total": self.network.total_parameters,
                "trainable": self.network.trainable_parameters,
            },
            "peak": self.peak_json(),
            "phases": {
                **{
                    name: {"peak_bytes": phase.peak_bytes, "end_bytes": phase.end_bytes, "op": phase.op}
                    for name, phase in self.memory.phases.items()
                },
                "save": self.host.to_json(),
            },
            "components": self.components,
            "checkpoint_bytes": self.checkpoint_bytes,
            **({"pipeline_stage_peaks": list(self.stage_peaks)} if self.stage_peaks else {}),
            "step_seconds": time.seconds if time else None,
            "tokens_per_second": time.tokens_per_second if time else None,
            "interval": self.interval.to_json(),
            "basis": self.basis(),
            "savings": [saving.to_json() for saving in self.savings],
            "warnings": list(self.warnings),
            **({"config": self.request.config.to_json()} if self.request.config else {}),
        }

    def peak_json(self) -> dict[str, Any]:
        """The peak's bytes, phase and op."""
        return {
            "allocated_bytes": self.allocated_bytes,
            "reserved_bytes": self.reserved_bytes,
            "device_bytes": self.device_bytes,
            "host_bytes": self.host_bytes,
            "phase": self.memory.peak_phase,
            "op": self.memory.peak.op,
        }

    @property
    def interval(self) -> Interval:
        """Where the process's memory lies, judged by the errors of published runs."""
        return interval(self.reserved_bytes, self.runtime.total_bytes)

    def _memory_basis(self) -> str:
        if self.network.recorded is not None:
            return self.network.recorded.basis
        return "counted: ops and autograd's rules of the stack, checked against a trace of the real code"

    def _clock_basis(self) -> str:
        if not self.time or self.request.gpu is None:
            return "no GPU named"
        fitted = self.request.gpu.calibration
        if fitted is None or not fitted.constants:
            return "modelled: a roofline over the same ops with stated efficiencies"
        where = ", ".join(fitted.measured.get(key, "") for key in ("device", "date"))
        return f"calibrated: a roofline over the same ops with {', '.join(fitted.constants)} fitted to measured steps ({where})"

    def basis(self) -> dict[str, str]:
        """For each kind of figure, whether it is counted, modelled or calibrated, and on what."""
        notes = self.network.notes
        reason = notes.get("attention_kernel_reason", "")
        return {
            "stack": STACK if self.network.recorded is None else "the installed libraries, as they were traced",
            "parameters": "counted",
            "allocated_bytes": self._memory_basis(),
            "reserved_bytes": "modelled: the caching allocator's rules replayed over the step"
            if self.request.replays
            else "modelled: an allowance for fragmentation",
            "runtime": self.runtime.basis,
            "host_bytes": "modelled: the fullest node's loading, offloading and saving; not the data set",
            "step_seconds": self._clock_basis(),
            "attention_kernel": notes.get("attention_kernel", "") + (f" ({reason})" if reason else ""),
        }


def _replayed(request: Request, network: Network) -> Replay:
    """The run through the allocator, with a network for each length that batches have."""
    settings = request.settings
    lengths = request.batch_lengths
    if lengths and request.spec.source is not None:
        raise InputError("batches of several lengths are traced on one GPU alone; leave --batch-lengths out, or give one GPU")
    networks = {n: build(request.spec, request.method, replace(settings, seq_len=n)) for n in set(lengths) - {settings.seq_len}}
    networks[settings.seq_len] = network
    return replay(
        network,
        settings,
        request.optimizer,
        layers=ENOUGH_LAYERS,
        expandable_segments=request.expandable_segments,
        batches=[networks[n] for n in lengths],
        empty_cache_steps=request.empty_cache_steps,
    )


def estimate(request: Request, advice: bool = True) -> Estimate:
    """Estimate one configuration.

    Args:
        request: checked options.
        advice: also work out warnings and savings, which walk the ledger a few more times.

    Raises:
        InputError: the method does not fit the model.
    """
    settings = replace(request.settings, accumulating=request.gradient_accumulation_steps > 1)
    if request.gpu is not None and request.gpu.compute_capability is not None:
        settings = replace(settings, compute_capability=request.gpu.compute_capability)
    settings = request.sharding.settings(settings)
    settings = for_method(settings, request.method, request.gradient_accumulation_steps, request.sharding.data_parallel)
    request = replace(request, settings=settings)
    network = build(request.spec, request.method, settings)
    sharding = request.sharding
    if network.fused_update and sharding.engine_used == "deepspeed":
        raise InputError(
            f"DeepSpeed updates flat partitions after the backward, which {request.method.name} is not; use engine fsdp"
        )
    rank = rank_memory(
        request.spec, request.method, settings, request.optimizer, sharding, network, request.gradient_accumulation_steps
    )
    memory = rank.memory
    if request.replays:
        fragmentation = _replayed(request, network).fragmentation_bytes
    else:
        fragmentation = allowance(moving_bytes(memory.peak.levels))
    gpu = request.gpu
    runtime = runtime_of(gpu, sharding.gpu_count, network.quantized)
    result = Estimate(
        request=request,
        network=network,
        memory=memory,
        reserved_bytes=memory.peak.peak_bytes + fragmentation,
        runtime=runtime,
        host=host_memory(
            network,
            memory,
            request.optimizer,
            sharding,
            settings.precision == "master-weights",
            request.checkpoints,
            request.gpus_of_a_node,
        ),
        stage_peaks=rank.stage_peaks,
        checkpoint_bytes=checkpoint_bytes(network),
        time=time_of(request, rank.network) if gpu else None,
    )
    if request.spec.source is not None:  # what else could be set would have to be traced first
        return replace(result, warnings=(request.spec.note,))
    if not advice:
        return result
    from tuneplan.planner.advice import warnings
    from tuneplan.planner.savings import savings

    found = savings(request, fragmentation, replayed=request.replays) if not sharding.splits_model else ()
    return replace(result, warnings=warnings(result), savings=found)
