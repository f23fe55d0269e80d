"""The records that the loader hands out: a GPU, an instance, an offer, and a figure with its source."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from tuneplan.hardware_profiles.calibrations import Calibration

_DTYPE_NAMES = {
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "float16": "fp16",
    "tf32": "tf32",
    "fp32": "fp32",
    "float32": "fp32",
}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a figure was read.

    Attributes:
        title: what was read.
        reference: URL, or repository, commit and path.
        date: ISO date of the snapshot that was read, or else the day on which the figure was entered.
    """

    title: str
    reference: str
    date: str


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure as a file states it; numbers are in the unit that the field's name ends in."""

    value: int | str
    source: Source
    quote: str


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU model. A figure without a source is absent (None), never guessed.

    The figures (`memory`, `bandwidth`, ...) carry value, source and quote; the properties give the bare values.

    Attributes:
        kind: "data centre", "workstation" or "consumer".
        memory_basis: who reported the capacity. "cuda": total memory as torch and the CUDA runtime see it (the
            lowest report found for the card); "nvidia-smi": somewhat more than a program can get; "label": the
            nominal capacity, not measured, expect less.
        peaks: dense peak rate by data type, FLOP/s, one multiply-add is 2.
        calibration: constants that were fitted to measurements on such a card, or None.
    """

    id: str
    name: str
    vendor: str
    architecture: str
    kind: str
    aliases: tuple[str, ...]
    memory_basis: str
    memory: Figure
    bandwidth: Figure
    capability: Figure | None = None
    nvlink: Figure | None = None
    pcie_link: Figure | None = None
    tdp: Figure | None = None
    purchase: Figure | None = None
    peaks: Mapping[str, Figure] = field(default_factory=dict, hash=False)
    note: str = ""
    calibration: Calibration | None = None

    @property
    def memory_bytes(self) -> int:
        """Device memory that a program can reach, bytes; see `memory_basis`."""
        return int(self.memory.value)

    @property
    def memory_is_measured(self) -> bool:
        """Whether `memory_bytes` is a measurement, not the label."""
        return self.memory_basis != "label"

    @property
    def bandwidth_bytes_per_second(self) -> int:
        """Peak bandwidth of the device memory, bytes per second."""
        return int(self.bandwidth.value)

    @property
    def compute_capability(self) -> tuple[int, int] | None:
        """CUDA compute capability, such as (8, 0); None if absent or not NVIDIA."""
        if self.capability is None:
            return None
        major, minor = str(self.capability.value).split(".")
        return int(major), int(minor)

    @property
    def nvlink_bytes_per_second(self) -> int | None:
        """NVLink bandwidth of one GPU, both directions together, bytes per second; None if there is none."""
        return None if self.nvlink is None else int(self.nvlink.value)

    @property
    def pcie(self) -> str | None:
        """PCI Express generation and width, such as "Gen4 x16"."""
        return None if self.pcie_link is None else str(self.pcie_link.value)

    @property
    def tdp_watts(self) -> int | None:
        """Rated board power, watts."""
        return None if self.tdp is None else int(self.tdp.value)

    @property
    def purchase_usd(self) -> Decimal | None:
        """Launch price of one card, US dollars."""
        return None if self.purchase is None else Decimal(self.purchase.value)

    def peak(self, dtype: str) -> Figure | None:
        """The dense peak rate for a data type with its source; None if the card has none or no source gives it.

        Raises:
            ValueError: `dtype` is not bf16, fp16, tf32, fp32 or torch's name for one of them.
        """
        try:
            return self.peaks.get(_DTYPE_NAMES[dtype])
        except KeyError:
            raise ValueError(f"No peak rate is kept for {dtype!r}; known: {', '.join(_DTYPE_NAMES)}") from None

    def peak_flops(self, dtype: str) -> int | None:
        """Dense peak rate for a data type, FLOP/s; None and ValueError as in `peak`."""
        figure = self.peak(dtype)
        return None if figure is None else int(figure.value)


@dataclass(frozen=True, slots=True)
class Instance:
    """One machine type of a provider.

    Attributes:
        id: the provider's own name for the type.
        gpu: id of the GPU in it.
        host_memory_bytes: memory of the whole machine; None if the source does not say.
        interconnect: "nvlink" or "pcie" between its GPUs; None with one GPU or if not known.
        source: where the composition was read; None for an instance that the user's own price file defines.
    """

    id: str
    provider: str
    gpu: str
    gpu_count: int
    vcpus: int | None = None
    host_memory_bytes: int | None = None
    interconnect: str | None = None
    source: Source | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """A price for an instance in a region.

    Attributes:
        purchase: "on_demand", "spot" or "reserved".
        usd_per_hour: US dollars per hour for the whole instance.
        date: ISO date of the price; None if the source does not say, and then `date_note` says why.
    """

    instance: Instance
    purchase: str
    usd_per_hour: Decimal
    region: str
    date: str | None
    date_note: str
    source: str
