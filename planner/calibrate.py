"""Fits a card's constants to measured steps, and shows estimates with and without them side by side.

Half of the rows, one of every two in the order of their labels, choose the constants; the others judge them. Each constant scales
one term of the roofline (Williams, Waterman and Patterson 2009), so each is fitted only where some row tells of that term.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import exp, log
from statistics import median

from tuneplan.hardware_profiles.calibrations import Calibration
from tuneplan.hardware_profiles.records import Gpu
from tuneplan.planner.errors import InputError
from tuneplan.planner.measurements import Measurement
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.timing import constants
from tuneplan.planner.timing.roofline import matmul_share
from tuneplan.planner.timing.step_time import StepTime, step_time
from tuneplan.planner.timing.work import NetworkWork, network_work

LEAST_ROWS = 4
SPREADS = (5.0, 3.0, 2.0, 1.5, *[1.3] * 20)
"""A round each: constants are looked for between the last value over this and times this."""
NARROWINGS = 12
_GOLDEN = 0.6180339887498949
_NEEDS = {
    "matmul_share": {"compute", "memory"},
    "memory_share": {"compute", "memory"},
    "host_forward_seconds": {"launch"},
}
"""What some row must be bound by, so that it tells of a constant."""
_MOST_SHARE = 1.2


@dataclass(frozen=True, slots=True)
class Prepared:
    """A measurement with what its step time needs."""

    measurement: Measurement
    network: Network
    work: NetworkWork


@dataclass(frozen=True, slots=True)
class Compared:
    """A measured step beside the estimates without and with the calibration [s]."""

    label: str
    measured: float
    before: float
    after: float
    chose: bool


@dataclass(frozen=True, slots=True)
class Fit:
    """A calibration, the rows that chose it and those that judge it, and what was left out."""

    calibration: Calibration
    rows: tuple[Compared, ...]
    runtime_rows: int
    left_out: tuple[str, ...]

    def error(self, after: bool, judged: bool = True) -> float | None:
        """Median size of the errors of the rows that judge (or of those that chose), as a share; None without such rows."""
        found = [abs((r.after if after else r.before) / r.measured - 1) for r in self.rows if r.chose != judged]
        return median(found) if found else None


def fit(gpu: Gpu, measurements: Sequence[Measurement], left_out: Sequence[str] = ()) -> Fit:
    """The calibration of a card.

    Args:
        gpu: the card on which all were measured; speeds of kernels in its calibration are kept.
        measurements: measured steps on one card.
        left_out: rows that could not be read.

    Raises:
        InputError: fewer than LEAST_ROWS timed steps, or no rate of the card is known.
    """
    plain = replace(gpu, calibration=None)
    timed, skipped = _prepared(plain, measurements)
    if len(timed) < LEAST_ROWS:
        raise InputError(
            f"{len(timed)} timed steps on one GPU are too few to fit and to judge; measure {LEAST_ROWS} or more with plan profile"
        )
    chosen, judges = timed[::2], timed[1::2]
    values = _fitted(chosen, plain)
    runtime = [
        m.device_bytes - m.reserved_bytes
        for m in measurements
        if m.device_bytes and m.reserved_bytes and m.request.sharding.data_parallel == 1 and m.device_bytes > m.reserved_bytes
    ]
    if runtime:
        values["runtime_bytes"] = median(runtime)
    labels = tuple(p.measurement.label for p in chosen)
    by_runtime = tuple(m.label for m in measurements if m.device_bytes and m.reserved_bytes)
    fitted = {name: by_runtime if name == "runtime_bytes" else labels for name in values}
    kernels = gpu.calibration.kernels if gpu.calibration else None
    calibration = Calibration(gpu.id, values, fitted, _origin(measurements), kernels)
    rows = [_compared(p, plain, values, chose) for group, chose in ((chosen, True), (judges, False)) for p in group]
    return Fit(calibration, tuple(rows), len(runtime), (*left_out, *skipped))


def _fitted(rows: Sequence[Prepared], gpu: Gpu) -> dict[str, float]:
    """Constants by coordinate descent: each is set to its best while the others stay."""
    bounds = {_time(p, gpu, {}).bound for p in rows}
    wanted = [name for name, needed in _NEEDS.items() if bounds & needed]
    start = _start(gpu)
    values: dict[str, float] = {}

    def loss(name: str, value: float) -> float:
        return _loss(rows, gpu, _with(values, name, value))

    for spread in SPREADS:
        for name in wanted:
            values = _with(values, name, _best(partial(loss, name), values.get(name, start[name]), spread))
    return values


def _prepared(gpu: Gpu, measurements: Sequence[Measurement]) -> tuple[list[Prepared], list[str]]:
    """Timed steps on one GPU, in the order of their labels, and why others are not used."""
    found: dict[str, Prepared] = {}
    skipped: list[str] = []
    for m in sorted(measurements, key=lambda m: m.label):
        request = m.request
        if m.step_seconds is None or request.sharding.data_parallel > 1:
            skipped.append(f"{m.label}: {'not timed' if m.step_seconds is None else 'several GPUs'}")
            continue
        settings = replace(request.settings, compute_capability=gpu.compute_capability or request.settings.compute_capability)
        network = build(request.spec, request.method, settings)
        prepared = Prepared(replace(m, request=replace(request, settings=settings)), network, network_work(network, settings))
        reason = _time(prepared, gpu, {}).reason
        if reason:
            raise InputError(f"no step can be timed on {gpu.name}: {reason}")
        found[m.label] = prepared
    return list(found.values()), skipped


def _time(prepared: Prepared, gpu: Gpu, values: Mapping[str, float]) -> StepTime:
    request = prepared.measurement.request
    return step_time(
        prepared.network,
        request.settings,
        request.optimizer,
        replace(gpu, calibration=Calibration(gpu.id, values)),
        gradient_accumulation_steps=request.gradient_accumulation_steps,
        work=prepared.work,
    )


def _seconds(prepared: Prepared, gpu: Gpu, values: Mapping[str, float]) -> float:
    seconds = _time(prepared, gpu, values).seconds
    assert seconds is not None
    return seconds


def _loss(rows: Sequence[Prepared], gpu: Gpu, values: Mapping[str, float]) -> float:
    """Mean square of the logarithms of predicted over measured."""
    logs = [log(_seconds(p, gpu, values) / (p.measurement.step_seconds or 1.0)) for p in rows]
    return sum(x * x for x in logs) / len(logs)


def _start(gpu: Gpu) -> dict[str, float]:
    return {
        "matmul_share": matmul_share(gpu),
        "memory_share": constants.MEMORY.value,
        "host_forward_seconds": constants.HOST_FORWARD_SECONDS.value,
    }


def _with(values: Mapping[str, float], name: str, value: float) -> dict[str, float]:
    """One constant changed; the backward's launches keep their ratio to the forward's, shares stay possible."""
    ratio = constants.HOST_BACKWARD_SECONDS.value / constants.HOST_FORWARD_SECONDS.value
    value = min(value, _MOST_SHARE) if name.endswith("_share") else value
    more = {"host_backward_seconds": value * ratio} if name == "host_forward_seconds" else {}
    return {**values, name: value, **more}


def _best(loss: Callable[[float], float], start: float, spread: float) -> float:
    """The value within a factor of `start` with the least loss, by golden-section search of its logarithm."""
    low, high = log(start / spread), log(spread * start)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = loss(exp(left)), loss(exp(right))
    for _ in range(NARROWINGS):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = loss(exp(left))
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = loss(exp(right))
    return exp((low + high) / 2)


def _compared(prepared: Prepared, gpu: Gpu, values: Mapping[str, float], chose: bool) -> Compared:
    m = prepared.measurement
    assert m.step_seconds is not None
    return Compared(m.label, m.step_seconds, _seconds(prepared, gpu, {}), _seconds(prepared, gpu, values), chose)


def _origin(measurements: Sequence[Measurement]) -> dict[str, str]:
    """Device, driver, libraries, dates and commits of the rows, each value once."""
    found: dict[str, list[str]] = {}
    for m in measurements:
        origin = m.origin
        device = origin.get("device")
        libraries = origin.get("libraries")
        facts = {
            "device": device.get("name") if isinstance(device, dict) else None,
            "driver": origin.get("driver"),
            "cuda": origin.get("cuda"),
            "libraries": ", ".join(f"{k} {v}" for k, v in libraries.items()) if isinstance(libraries, dict) else None,
            "date": str(origin.get("date") or "")[:10],
            "commit": origin.get("git_commit"),
        }
        for name, value in facts.items():
            if value and str(value) not in found.setdefault(name, []):
                found[name].append(str(value))
    return {name: "; ".join(values) for name, values in found.items() if values}
