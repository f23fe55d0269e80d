"""Meters, with the allocator's books of a CUDA device played by numbers, and the step that reads them run on the CPU."""

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from traced import small  # noqa: E402

from tuneplan.planner.methods.compose import parse  # noqa: E402
from tuneplan.planner.training.settings import Settings  # noqa: E402
from tuneplan.planner.training.sharding import SINGLE  # noqa: E402
from tuneplan.profiling import measure as measuring  # noqa: E402
from tuneplan.profiling import meters  # noqa: E402
from tuneplan.profiling.failures import failure_of  # noqa: E402
from tuneplan.profiling.meters import CudaMeter, process_bytes, resident_bytes, stored_bytes  # noqa: E402
from tuneplan.profiling.ranks import ALONE  # noqa: E402
from tuneplan.profiling.subject import Subject  # noqa: E402

DEVICE = torch.device("cpu")


class Books:
    """What `torch.cuda` would say: peaks since the last reset."""

    def __init__(self) -> None:
        self.allocated = self.peak = self.reserved = 0

    def take(self, size: int) -> None:
        """Allocate and free again all but a hundredth."""
        self.peak = max(self.peak, self.allocated + size)
        self.reserved = max(self.reserved, 2 * self.peak)
        self.allocated += size // 100

    def reset(self, device: Any) -> None:
        """As reset_peak_memory_stats."""
        self.peak = self.allocated


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> Books:
    """A device whose books are numbers."""
    found = Books()
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(cuda, "reset_peak_memory_stats", found.reset)
    monkeypatch.setattr(cuda, "max_memory_allocated", lambda device: found.peak)
    monkeypatch.setattr(cuda, "memory_allocated", lambda device: found.allocated)
    monkeypatch.setattr(cuda, "max_memory_reserved", lambda device: found.reserved)
    monkeypatch.setattr(cuda, "memory_reserved", lambda device: found.reserved)
    monkeypatch.setattr(cuda, "mem_get_info", lambda device: (700, 1000))
    monkeypatch.setattr(meters, "process_bytes", lambda device: None)
    return found


def test_each_phase_has_its_own_peak(books: Books) -> None:
    """Maxima are reset at every change of phase; a phase that comes again keeps the larger peak and its latest end."""
    meter = CudaMeter(DEVICE)
    for name, size in (("forward", 1000), ("backward", 5000), ("forward", 2000), ("backward", 100)):
        meter.phase(name)
        books.take(size)
    meter.phase("")

    assert ["forward", "backward"] == list(meter.phases)
    assert (2060, 80) == (meter.phases["forward"].peak_bytes, meter.phases["forward"].end_bytes)
    assert (5010, 81) == (meter.phases["backward"].peak_bytes, meter.phases["backward"].end_bytes)
    assert 10020 == meter.phases["backward"].reserved_peak_bytes


def test_a_phase_that_broke_off_is_kept(books: Books) -> None:
    """After an error the phase that ran is written down as far as it came."""
    meter = CudaMeter(DEVICE)
    meter.phase("backward")
    books.take(300)
    meter.close()
    assert 300 == meter.phases["backward"].peak_bytes


def test_the_step_of_a_gpu_reads_the_books(books: Books) -> None:
    """Load, warm-up, one recorded step, timed steps: the order of a GPU's measurement, on a model that stands on the CPU."""
    config = small(hidden_size=64, intermediate_size=172, num_hidden_layers=1, num_attention_heads=4)
    settings = Settings(micro_batch_size=1, seq_len=8, attention="eager")
    subject = Subject("tiny", config, parse("lora"), settings=settings)
    run = measuring._Run(subject, DEVICE, SINGLE, ALONE, measuring.nobody, "eager")
    run._meter = CudaMeter(DEVICE)
    books.take(50_000)
    run.load()
    run.on_cuda(1, 2)
    seen = run.result(None)

    assert ["load", "forward", "backward", "optimizer_step"] == list(seen.phases)
    assert 2 == len(seen.timing.steps)
    assert (100_000, 300) == (seen.reserved_bytes, seen.in_use_bytes)


def test_process_memory_by_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML's figure of this process; None where NVML lists only others, or does not answer."""
    listed = [SimpleNamespace(pid=os.getpid() + 1, usedGpuMemory=1), SimpleNamespace(pid=os.getpid(), usedGpuMemory=77)]
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: listed,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="x"))
    assert 77 == process_bytes(DEVICE)
    listed.pop()
    assert process_bytes(DEVICE) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert process_bytes(DEVICE) is None


def test_stored_bytes_count_each_storage_once() -> None:
    """Views and repeats add nothing, sizes are rounded to the allocator's block, other devices and non-tensors are left out."""
    tensor = torch.empty(200)
    found = [tensor, tensor[:3], tensor, torch.empty(1), torch.empty(9, device="meta"), 5, None]
    assert 1024 + 512 == stored_bytes(found, "cpu")


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system has no /proc")
def test_resident_memory() -> None:
    """This process takes some memory, and never more than its peak."""
    now, peak = resident_bytes(), resident_bytes(peak=True)
    assert now is not None
    assert peak is not None
    assert 10 * 2**20 < now <= peak


def test_a_failure_is_found_behind_the_error_that_tells_of_it() -> None:
    """A build that ran out of memory is told by an error of ours; what it came from decides."""
    outer = ValueError("transformers cannot build it")
    outer.__cause__ = torch.cuda.OutOfMemoryError("CUDA out of memory")
    failure = failure_of(outer, "load")

    assert failure is not None
    assert ("out_of_memory", "load") == (failure.kind, failure.phase)
    assert failure_of(ValueError("a shape"), "load") is None
