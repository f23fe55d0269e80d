"""Snapshots: what is written can be read by PyTorch's own tools, and what is read cannot run."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from traced import small  # noqa: E402

from tuneplan.planner.errors import InputError  # noqa: E402
from tuneplan.planner.training.settings import Settings  # noqa: E402
from tuneplan.profiling import snapshot  # noqa: E402
from tuneplan.profiling.plot import writer  # noqa: E402
from tuneplan.profiling.subject import Subject  # noqa: E402
from tuneplan.profiling.trace import Traced, trace  # noqa: E402


@pytest.fixture(scope="module")
def step() -> Traced:
    """A small full fine-tuning step."""
    return trace(Subject("small", small(num_hidden_layers=2), settings=Settings(micro_batch_size=1, seq_len=64)))


def test_pytorch_reads_what_is_written(step: Traced, tmp_path: Path) -> None:
    """PyTorch's own memory visualizer draws the file, and its text dump lists every birth."""
    from torch.cuda import _memory_viz

    path = tmp_path / "step.pickle"
    line = writer(path, None)(step)
    content = pickle.loads(path.read_bytes())

    assert "memory_viz" in line
    assert "free completed" in _memory_viz.trace(content)
    assert "<html" in _memory_viz.trace_plot(content).lower() or "<script" in _memory_viz.trace_plot(content).lower()


def test_what_was_written_reads_back(step: Traced, tmp_path: Path) -> None:
    """The highest live bytes of the snapshot are the trace's, with the cuBLAS workspaces and rounding that the allocator adds."""
    path = tmp_path / "step.pickle"
    writer(path, None)(step)
    measured = snapshot.read(path)

    assert step.reserved is not None
    assert step.peak.peak_bytes < measured.peak_bytes <= step.reserved.allocated_bytes


def test_a_real_snapshot_is_laid_beside(step: Traced, tmp_path: Path) -> None:
    """A history with blocks that were there before it began starts at their bytes."""
    events = [{"action": "alloc", "addr": 1, "size": 100}, {"action": "free_completed", "addr": 1, "size": 100}]
    segments = [{"blocks": [{"size": 1000, "state": "active_allocated"}, {"size": 24, "state": "inactive"}]}]
    path = tmp_path / "real.pickle"
    path.write_bytes(pickle.dumps({"device_traces": [[], events], "segments": segments}))

    assert [1100, 1000] == list(snapshot.read(path).live_bytes)
    line = writer(tmp_path / "both.png", path)(step)
    assert "peak of the snapshot" in line
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


class _Runs:
    """Would run a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(_Runs()), "asks for posix.system"),
        (pickle.dumps([1, 2]), "no history of allocations"),
        (pickle.dumps({"device_traces": [], "segments": []}), "no history"),
        (pickle.dumps({"device_traces": [[]], "segments": []}), "empty history"),
        (b"not a pickle", "not a memory snapshot"),
        (b"", "not a memory snapshot"),
    ],
)
def test_what_is_not_a_snapshot(content: bytes, message: str, tmp_path: Path) -> None:
    """A file that would run code, or holds something else, is refused."""
    path = tmp_path / "real.pickle"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        snapshot.read(path)


@pytest.mark.parametrize(("name", "message"), [("x.gif", "neither .png"), ("no/where/x.png", "does not exist")])
def test_timelines_that_cannot_be_written(name: str, message: str, tmp_path: Path) -> None:
    """The file is looked at before the trace is made."""
    with pytest.raises(InputError, match=message):
        writer(tmp_path / name, None)


def test_svg(step: Traced, tmp_path: Path) -> None:
    """A picture that scales."""
    path = tmp_path / "step.svg"
    writer(path, None)(step)

    assert "<svg" in path.read_text(encoding="utf-8")
    assert "logits" in path.read_text(encoding="utf-8") or path.stat().st_size > 10_000
