"""Which code runs: by name, by device, and by what is installed."""

import pytest
import torch

from tuneplan.kernels import backend
from tuneplan.kernels.errors import KernelInputError, KernelUnavailableError

CPU, META = torch.device("cpu"), torch.device("meta")


def test_tensors_of_a_cpu_stay_with_torch() -> None:
    """Also where Triton's interpreter is on: it is for tests, which ask for it by name."""
    assert ("torch", "torch", "torch") == tuple(backend.chosen(name, CPU) for name in ("auto", "torch", "auto"))
    assert "torch" == backend.chosen("auto", META)


def test_a_wrong_name() -> None:
    """Names the three that are known."""
    with pytest.raises(KernelInputError, match="'cuda': one of auto, triton, torch"):
        backend.chosen("cuda", CPU)


def test_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton asked for by name on a CPU says what it needs."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(KernelUnavailableError, match="a GPU is needed, or TRITON_INTERPRET=1"):
        backend.chosen("triton", CPU)


@pytest.mark.parametrize(("found", "word"), [("3.3.1", "older than 3.6"), ("2.1.0", "older than 3.6"), (None, "not installed")])
def test_tritons_that_do_not_compile_the_programs(monkeypatch: pytest.MonkeyPatch, found: str | None, word: str) -> None:
    """An old one and none."""

    def version(name: str) -> str:
        if found is None:
            raise backend.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(backend, "version", version)
    assert word in str(backend._without_triton())


@pytest.mark.parametrize("found", ["3.6.0", "3.9.0", "4.0.0+git"])
def test_tritons_that_do(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    """From 3.6 on."""
    monkeypatch.setattr(backend, "version", lambda name: found)
    assert backend._without_triton() is None


def test_traced_tensors_stand_for_a_gpu() -> None:
    """Autocast of a tensor without values is that of CUDA."""
    assert ("cuda", "cpu") == (backend.autocast_of(META), backend.autocast_of(CPU))
