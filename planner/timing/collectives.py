"""Time of collective operations between the ranks of one machine, and what data-parallel training sends.

Ring algorithms (Patarasu and Yuan 2009, Bandwidth optimal all-reduce algorithms; Rajbhandari et al. 2020, ZeRO,
section 7). Not counted: latency of small messages, trees, in-switch reduction (NVLS), networks between machines.
"""

import re
from dataclasses import dataclass

from tuneplan.hardware_profiles.records import Gpu
from tuneplan.planner.graph.tensor import BITS
from tuneplan.planner.models.network import Network
from tuneplan.planner.timing import constants
from tuneplan.planner.timing.roofline import larger

PCIE_LANE_BYTES = {3: 985_000_000, 4: 1_969_000_000, 5: 3_938_000_000, 6: 7_563_000_000}
"""Bytes per second of one lane in one direction, after encoding (PCI-SIG base specifications 3.0 to 6.0)."""

ASSUMED_PCIE = "Gen4 x16"


@dataclass(frozen=True, slots=True)
class Link:
    """A connection: bytes per second in one direction, and what it is."""

    bytes_per_second: float
    note: str


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that each rank sends.

    Attributes:
        each_micro_batch: once for every forward and backward (gathered weights).
        each_step: once for every update (gradients; updated weights).
    """

    each_micro_batch: float
    each_step: float


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
    if gpu.nvlink_bytes_per_second and interconnect != "pcie":
        return Link(gpu.nvlink_bytes_per_second / 2 * constants.NVLINK.value, "NVLink between all ranks")
    link = pcie_link(gpu)
    return Link(link.bytes_per_second * constants.PCIE_COLLECTIVE.value, link.note)


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
        return Traffic(0.0, all_reduce_bytes(trained, ranks))
    if zero_stage < 3 and engine != "fsdp":
        return Traffic(0.0, 2 * all_gather_bytes(trained, ranks))
    stored = sum(p.stored_bytes * p.count for p in network.parameters)
    return Traffic((zero_stage - 1) * all_gather_bytes(stored, ranks), all_gather_bytes(trained, ranks))


def exposed_seconds(communication: float, window: float) -> float:
    """Communication that a step waits for: what cannot hide behind `window` seconds of computation.

    Never less than a share of `1 - constants.OVERLAP`.
    """
    return larger(communication * (1 - constants.OVERLAP.value), communication - window)
