"""What the device and the process say of their own memory, phase by phase of a step."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tuneplan.planner.graph.tensor import round_block
from tuneplan.planner.units import KIB
from tuneplan.profiling.timeline import PhasePeak


@dataclass(frozen=True, slots=True)
class PhaseMemory:
    """Memory of one phase [bytes]; None is what this device cannot say.

    Attributes:
        peak_bytes: most bytes allocated.
        end_bytes: allocated when it ended.
        reserved_peak_bytes: most bytes that the caching allocator held.
        reserved_end_bytes: held when it ended.
        process_bytes: device memory of this process when it ended, as NVML counts it.
        resident_bytes: host memory of this process when it ended.
        op: the operator at the peak, where storages were tracked.
        levels: bytes by category at the peak, in the order of CATEGORIES, where storages were tracked.
    """

    peak_bytes: int
    end_bytes: int
    reserved_peak_bytes: int | None = None
    reserved_end_bytes: int | None = None
    process_bytes: int | None = None
    resident_bytes: int | None = None
    op: str = ""
    levels: tuple[int, ...] = ()

    @classmethod
    def of(cls, tracked: PhasePeak) -> "PhaseMemory":
        """What the storage tracker saw."""
        return cls(tracked.peak_bytes, tracked.end_bytes, op=tracked.op, levels=tracked.levels)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; what is not known is left out."""
        names = ("reserved_peak_bytes", "reserved_end_bytes", "process_bytes", "resident_bytes")
        known = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {"peak_bytes": self.peak_bytes, "end_bytes": self.end_bytes, **known, "op": self.op}


class CudaMeter:
    """Allocated and reserved memory of a CUDA device, and their maxima in each phase.

    Attributes:
        phases: what was seen so far, by name; a phase that comes again keeps its maxima and its latest end.
    """

    def __init__(self, device: torch.device) -> None:
        """Argument: the device to watch."""
        self._device = device
        self._current = ""
        self.phases: dict[str, PhaseMemory] = {}

    def phase(self, name: str) -> None:
        """The program enters a phase; "" for none that is recorded."""
        torch.cuda.synchronize(self._device)
        self.close()
        torch.cuda.reset_peak_memory_stats(self._device)
        self._current = name

    def close(self) -> None:
        """Write down the phase that runs, also where it broke off; asks the allocator's books, not the device."""
        if not self._current:
            return
        seen = PhaseMemory(
            peak_bytes=torch.cuda.max_memory_allocated(self._device),
            end_bytes=torch.cuda.memory_allocated(self._device),
            reserved_peak_bytes=torch.cuda.max_memory_reserved(self._device),
            reserved_end_bytes=torch.cuda.memory_reserved(self._device),
            process_bytes=process_bytes(self._device),
            resident_bytes=resident_bytes(),
        )
        before = self.phases.get(self._current)
        if before is not None:
            seen = replace(
                seen,
                peak_bytes=max(before.peak_bytes, seen.peak_bytes),
                reserved_peak_bytes=max(before.reserved_peak_bytes or 0, seen.reserved_peak_bytes or 0),
            )
        self.phases[self._current] = seen
        self._current = ""


class ResidentMeter:
    """Host memory of this process at the end of each phase, for a step on the CPU."""

    def __init__(self) -> None:
        """Nothing is seen yet."""
        self._current = ""
        self.resident: dict[str, int] = {}

    def phase(self, name: str) -> None:
        """The program enters a phase."""
        now = resident_bytes()
        if self._current and now is not None:
            self.resident[self._current] = now
        self._current = name


def process_bytes(device: torch.device) -> int | None:
    """Device memory of this process as NVML counts it; None without NVML, or where it cannot see this process.

    In a container NVML may list processes under the numbers of the host.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode())
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid() and process.usedGpuMemory:
                return int(process.usedGpuMemory)
    except Exception:  # NVML raises classes of its own, made at run time; a device that is gone raises torch's
        return None
    return None


def device_in_use_bytes(device: torch.device) -> int | None:
    """Memory of the whole card that is not free, other processes included; None where the driver does not answer."""
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError:
        return None
    return total - free


def resident_bytes(peak: bool = False) -> int | None:
    """Host memory of this process, now or at most so far; None where the system has no /proc."""
    return _kibibytes("/proc/self/status", "VmHWM:" if peak else "VmRSS:")


def available_bytes() -> int | None:
    """Host memory that can be had without swapping; None where the system has no /proc."""
    return _kibibytes("/proc/meminfo", "MemAvailable:")


def _kibibytes(path: str, key: str) -> int | None:
    try:
        lines = Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * KIB for line in lines if line.startswith(key)), None)


def stored_bytes(tensors: Iterable[Any], device_type: str) -> int:
    """Bytes of tensors on a kind of device as its allocator counts them, each storage once; of a split one this rank's part."""
    sizes: dict[int, int] = {}
    for tensor in tensors:
        own = getattr(tensor, "_local_tensor", tensor)
        if isinstance(own, torch.Tensor) and own.device.type == device_type and not getattr(own, "is_paged", False):
            storage = own.untyped_storage()
            sizes[storage.data_ptr()] = round_block(storage.nbytes())
    return sum(sizes.values())
