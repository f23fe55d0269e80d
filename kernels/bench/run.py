"""One case: every implementation checked, then timed in interleaved rounds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tuneplan.kernels.bench.cases import Case
from tuneplan.kernels.bench.ceilings import Ceilings
from tuneplan.kernels.bench.clocks import Call, CallClock, GraphClock, free, peak_bytes, sets_for
from tuneplan.kernels.bench.kernel import Checked, Implementation, Kernel, Prepared
from tuneplan.kernels.bench.machine import Machine, free_bytes
from tuneplan.kernels.bench.registry import KERNELS
from tuneplan.kernels.bench.rounds import AGAIN, ROUNDS, Ratio, Summary, interleaved
from tuneplan.kernels.bench.rows import FAILED, MEASURED, NOT_RUN, WRONG, Row, bench_key, ratio_json, row, seconds_json

SEED = 1
_REFERENCE_BYTES = 24
"""A value that the reference holds for a moment: indices, scales and values in fp32, or two copies in fp64 and one in fp32."""


@dataclass(slots=True)
class Contestant:
    """An implementation on its way through a case."""

    name: str
    implementation: Implementation
    state: str = MEASURED
    reason: str | None = None
    checked: Checked | None = None
    calls: list[Call] = field(default_factory=list)
    prepared: list[Prepared] = field(default_factory=list)
    graph: GraphClock | None = None
    no_graph: str | None = None
    peak_bytes: int | None = None

    def stop(self, state: str, reason: str) -> None:
        """Take it out of the race."""
        self.state, self.reason = state, reason
        self.calls, self.prepared, self.graph = [], [], None


def run_case(
    case: Case, machine: Machine, ceilings: Ceilings, names: Sequence[str] | None = None, rounds: int = ROUNDS
) -> list[Row]:
    """A row of each implementation.

    Args:
        case: what is timed.
        machine: where.
        ceilings: of this process.
        names: implementations that are wanted; None for all.
        rounds: interleaved rounds.
    """
    kernel = KERNELS[case.kernel]
    contestants = [Contestant(name, one) for name, one in kernel.implementations.items() if names is None or name in names]
    for one in contestants:
        reason = one.implementation.missing(case, machine.device)
        if one.implementation.compiles and names is None and not machine.on_gpu:
            reason = f"compiling takes long on a CPU; it is run where it is asked for (--implementations {one.name})"
        if reason:
            one.stop(NOT_RUN, reason)
    short = _short_of_memory(case, kernel, machine)
    for one in contestants:
        if short and one.state == MEASURED:
            one.stop(NOT_RUN, short)
    if any(one.state == MEASURED for one in contestants):
        _prepare(case, kernel, machine, contestants)
    running = [one for one in contestants if one.state == MEASURED]
    calls = {one.name: CallClock(one.calls, machine.device) for one in running}
    graphs = {one.name: one.graph for one in running if one.graph}
    by_call = interleaved({name: clock.round for name, clock in calls.items()}, rounds)
    on_device = interleaved({name: clock.round for name, clock in graphs.items()}, rounds)
    rows = [_row(case, kernel, machine, ceilings, one, by_call, on_device) for one in contestants]
    for one in contestants:
        one.stop(one.state, one.reason or "")
    free(machine.device)
    return rows


def _short_of_memory(case: Case, kernel: Kernel, machine: Machine) -> str | None:
    """Why a case does not fit into what is free: sets of inputs and results, and the reference's fp64."""
    least = kernel.minimum_bytes(case)
    features = case.shape.out_features + case.shape.in_features
    needed = sets_for(least, machine.device) * least + _REFERENCE_BYTES * (case.shape.weights + case.tokens * features)
    free_now = free_bytes(machine.device)
    if free_now is None or needed <= free_now:
        return None
    return f"it needs about {needed / 2**30:.0f} GiB with its reference, {free_now / 2**30:.0f} GiB are free"


def _prepare(case: Case, kernel: Kernel, machine: Machine, contestants: Sequence[Contestant]) -> None:
    """Inputs, the calls on each set, and whether their results are right."""
    device = machine.device
    count = sets_for(kernel.minimum_bytes(case), device)
    inputs = [kernel.inputs(case, device, SEED + 10 * number) for number in range(count)]
    outputs = [kernel.output(case, device) for _ in inputs]
    last = len(inputs) - 1
    expected = {0: kernel.expected(case, inputs[0]), last: kernel.expected(case, inputs[last])}
    for one in contestants:
        if one.state != MEASURED:
            continue
        try:
            one.prepared = [one.implementation.prepare(case, own) for own in inputs]
            one.calls = [_call(run, out) for run, out in zip(one.prepared, outputs, strict=True)]
            for number, right in expected.items():
                one.checked = _checked(case, kernel, one, one.calls[number](), outputs[number], right, number)
                if one.checked.reason:
                    break
            if one.checked and not one.checked.reason:
                one.peak_bytes = peak_bytes(_call(one.prepared[0], None), device)
                if machine.on_gpu:
                    _capture(case, kernel, machine, one, outputs[0], expected[0])
        except Exception as error:  # another project's code; whatever it raises is its row's reason
            one.stop(FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
            continue
        if one.checked and one.checked.reason:
            one.stop(WRONG, one.checked.reason)


def _call(run: Prepared, out: torch.Tensor | None) -> Call:
    return lambda: run(out)


def _checked(
    case: Case, kernel: Kernel, one: Contestant, result: Any, out: torch.Tensor | None, right: Sequence[torch.Tensor], number: int
) -> Checked:
    """Of a second call, into a buffer that holds no number, so that what is left unwritten shows."""
    if out is not None:
        out.fill_(float("nan"))
        result = one.calls[number]()
    return kernel.check(case, one.name, result, right)


def _capture(
    case: Case, kernel: Kernel, machine: Machine, one: Contestant, out: torch.Tensor | None, right: Sequence[torch.Tensor]
) -> None:
    """A CUDA graph for each set; what a replay writes is checked too."""
    try:
        one.graph = GraphClock(one.calls, machine.device)
    except RuntimeError as error:
        one.no_graph = f"it cannot be captured: {' '.join(str(error).split())[:200]}"
        return
    if out is not None:
        out.fill_(float("nan"))
    checked = kernel.check(case, one.name, one.graph.once(), right)
    if checked.reason:
        one.checked = Checked(checked.error, checked.bound, f"replayed from a CUDA graph: {checked.reason}")


def _row(
    case: Case,
    kernel: Kernel,
    machine: Machine,
    ceilings: Ceilings,
    one: Contestant,
    by_call: dict[str, list[float]],
    on_device: dict[str, list[float]],
) -> Row:
    device, call = (Summary.of(found[one.name]) if one.name in found else None for found in (on_device, by_call))
    best = device or call
    least_bytes, flops, moved = kernel.minimum_bytes(case), kernel.flops(case), one.implementation.moved_bytes(case)
    rate = ceilings.copy_bytes_per_second
    checked = one.checked
    return row(
        "bench",
        bench_key(case, one.name),
        machine.provenance,
        kernel=case.kernel,
        case=case.as_json(),
        implementation=one.name,
        basis=one.implementation.basis,
        state=one.state,
        reason=one.reason or one.no_graph or None,
        correctness=checked and {"relative_error": _finite(checked.error), "bound": checked.bound},
        clock="cuda graph" if device else "wall" if call else None,
        device_seconds=seconds_json(device),
        call_seconds=seconds_json(call),
        versus=_versus(on_device or by_call, one.name),
        versus_by_call=_versus(by_call, one.name),
        minimum_bytes=least_bytes,
        moved_bytes=moved,
        flops=flops,
        share_of_copy=best and least_bytes / best.median / rate,
        share_of_roofline=best and ceilings.least_seconds(least_bytes, flops) / best.median,
        moved_bytes_per_second=best and moved and moved / best.median,
        peak_bytes=one.peak_bytes,
        copy_bytes_per_second=rate,
        product_flops_per_second=ceilings.product_flops_per_second,
    )


def _versus(rounds: dict[str, list[float]], name: str) -> dict[str, Any] | None:
    """The ratio to the first contestant; None for itself, and where it was not timed."""
    if name not in rounds:
        return None
    first = next(iter(rounds))
    ratio = Ratio.of(rounds[name], rounds[first], rounds[first + AGAIN])
    return {"implementation": first, **(ratio_json(ratio) or {})} if name != first else None


def _finite(value: float) -> float | None:
    return value if value == value and abs(value) != float("inf") else None  # noqa: PLR0124 -- not a number
