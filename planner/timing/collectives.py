"""Time of collective operations between the ranks of one machine, and what data-parallel training sends.

Ring algorithms (Patarasu and Yuan 2009, Bandwidth optimal all-reduce algorithms; Rajbhandari et al. 2020, ZeRO,
section 7). On cards whose collectives were measured, the rate is that of the message's size and the number of ranks; on others
with NVLink, that of the measured card with the nearest bandwidth, in proportion. Not counted: contention with other traffic.
"""

import re
from dataclasses import dataclass
from functools import cache
from math import log
from typing import Any

from tuneplan.hardware_profiles import speed_tables
from tuneplan.hardware_profiles.records import Gpu
from tuneplan.hardware_profiles.speed_tables import CollectiveTimes
from tuneplan.planner.graph.tensor import BITS
from tuneplan.planner.models.network import Network
from tuneplan.planner.timing import constants
from tuneplan.planner.timing.roofline import larger

PCIE_LANE_BYTES = {3: 985_000_000, 4: 1_969_000_000, 5: 3_938_000_000, 6: 7_563_000_000}
"""Bytes per second of one lane in one direction, after encoding (PCI-SIG base specifications 3.0 to 6.0)."""

ASSUMED_PCIE = "Gen4 x16"
DDP_BUCKET_BYTES = 25 * 2**20
"""`bucket_cap_mb` of DistributedDataParallel."""


@dataclass(frozen=True, slots=True)
class Link:
    """A connection between ranks.

    Attributes:
        bytes_per_second: in one direction, for large messages.
        note: what it is.
        times: measured collectives, or None.
        scale: what their rates are multiplied with.
    """

    bytes_per_second: float
    note: str
    times: CollectiveTimes | None = None
    scale: float = 1.0

    def rate(self, operation: str, message_bytes: Any, ranks: int) -> Any:
        """Bytes per second that each rank sends in an operation of `speed_tables.COLLECTIVES` over a message, or over several."""
        if self.times is None or ranks < 2 or (isinstance(message_bytes, int | float) and message_bytes <= 0):
            return self.bytes_per_second
        sent = all_gather_bytes(message_bytes, ranks) * (2 if operation == "all_reduce" else 1)
        return sent / self.times.seconds(operation, message_bytes, ranks) * self.scale


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that each rank sends.

    Attributes:
        each_micro_batch: once for every forward and backward (gathered weights).
        each_step: once for every update (gradients; updated weights).
        message_bytes: of one collective.
    """

    each_micro_batch: float
    each_step: float
    message_bytes: float = 0.0


def pcie_bytes_per_second(text: str) -> int:
    """Bytes per second in one direction of a link such as "Gen4 x16"; 16 lanes unless the text says otherwise.

    Raises:
        ValueError: the text is not a generation from 3 to 6.
    """
    match = re.fullmatch(r"\s*Gen\s*(\d)\s*(?:x\s*(\d+))?\s*", text, re.IGNORECASE)
    if match is None or int(match.group(1)) not in PCIE_LANE_BYTES:
        raise ValueError(f"{text!r} is not a PCI Express link; write one such as 'Gen4 x16'")
    return PCIE_LANE_BYTES[int(match.group(1))] * int(match.group(2) or 16)


def pcie_link(gpu: Gpu) -> Link:
    """The card's PCI Express link; copies to and from the host reach `constants.PCIE_COPY` of it."""
    if gpu.pcie:
        return Link(float(pcie_bytes_per_second(gpu.pcie)), f"PCIe {gpu.pcie}")
    note = f"PCIe {ASSUMED_PCIE}, assumed because no link is known for {gpu.name}"
    return Link(float(pcie_bytes_per_second(ASSUMED_PCIE)), note)


def copy_seconds(nbytes: float, gpu: Gpu) -> float:
    """Time to copy between host and device, one way."""
    return nbytes / (pcie_link(gpu).bytes_per_second * constants.PCIE_COPY.value)


def gpu_link(gpu: Gpu, interconnect: str | None = None) -> Link:
    """What collectives reach: NVLink if the card has it (half its figure, which counts both directions), else PCIe.

    `interconnect`: "pcie" where the machine does not join its cards by NVLink (`Instance.interconnect`).
    """
    own = speed_tables.bundled(gpu.id)
    if gpu.nvlink_bytes_per_second and interconnect != "pcie":
        name, scale = _like(gpu.nvlink_bytes_per_second)
        speeds = speed_tables.bundled(name)
        times = None if speeds is None else speeds.collectives
        return Link(gpu.nvlink_bytes_per_second / 2 * constants.NVLINK.value, "NVLink between all ranks", times, scale)
    link = pcie_link(gpu)
    if own is not None and own.collectives is not None and not gpu.nvlink_bytes_per_second:
        note = f"{link.note}, as measured on one machine"
        return Link(link.bytes_per_second * constants.PCIE_COLLECTIVE.value, note, own.collectives)
    return Link(link.bytes_per_second * constants.PCIE_COLLECTIVE.value, link.note)


def _like(nvlink: int) -> tuple[str, float]:
    """The measured card with the nearest NVLink bandwidth, and this one's bandwidth over its own."""
    known = _measured_nvlink()
    nearest = min(known, key=lambda name: abs(log(known[name] / nvlink)))
    return nearest, nvlink / known[nearest]


@cache
def _measured_nvlink() -> dict[str, int]:
    """NVLink bandwidth of the cards whose collectives were measured, by id."""
    from tuneplan.hardware_profiles.loader import find_gpu

    found = {name: find_gpu(name).nvlink_bytes_per_second for name in speed_tables.measured()}
    return {name: nvlink for name, nvlink in found.items() if nvlink}


def all_gather_bytes(nbytes: float, ranks: int) -> float:
    """Bytes each rank sends so that all have the whole `nbytes`; reduce-scatter is the same."""
    return nbytes * (ranks - 1) / ranks


def all_reduce_bytes(nbytes: float, ranks: int) -> float:
    """Bytes each rank sends to sum `nbytes` over all ranks: a reduce-scatter and an all-gather."""
    return 2 * all_gather_bytes(nbytes, ranks)


def data_parallel_bytes(network: Network, ranks: int, zero_stage: int, engine: str = "") -> Traffic:
    """What each rank sends.

    Stage 0 is DDP: gradients are all-reduced. Stages 1 and 2 reduce-scatter gradients and all-gather the updated
    weights. Stage 3 (FSDP full shard) gathers every weight in the forward and again in the backward, and
    reduce-scatters gradients. FSDP's stage 2 gathers every weight once, in the forward. Not counted: that FSDP reduces
    gradients in every micro-batch where the loop does not tell it to wait (`set_requires_gradient_sync`).
    """
    trained = sum(p.numel * BITS[p.storage] // 8 for p in network.parameters if p.trainable)
    if zero_stage == 0:
        return Traffic(0.0, all_reduce_bytes(trained, ranks), min(trained, DDP_BUCKET_BYTES))
    if zero_stage < 3 and engine != "fsdp":
        return Traffic(0.0, 2 * all_gather_bytes(trained, ranks), trained)
    stored = sum(p.stored_bytes * p.count for p in network.parameters)
    unit = stored / (1 + sum(run.count for run in network.runs if run.layered))
    return Traffic((zero_stage - 1) * all_gather_bytes(stored, ranks), all_gather_bytes(trained, ranks), unit)


def operation(zero_stage: int) -> str:
    """The collective that sends most of the bytes of a stage."""
    return "all_gather" if zero_stage else "all_reduce"


def exposed_seconds(communication: float, window: float) -> float:
    """Communication that a step waits for: what cannot hide behind `window` seconds of computation.

    Never less than a share of `1 - constants.OVERLAP`.
    """
    return larger(communication * (1 - constants.OVERLAP.value), communication - window)
