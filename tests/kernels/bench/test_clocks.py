"""Clocks on a device that is played: what they time, in which order, and what is left behind where a capture fails."""

from collections.abc import Callable

import pytest

pytest.importorskip("torch")

import torch
from played_cuda import PlayedCuda

from tuneplan.kernels.bench import clocks
from tuneplan.kernels.bench.clocks import CallClock, GraphClock, calls_for, peak_bytes, sets_for

CUDA = torch.device("cuda", 0)
MIB = 2**20


def test_device_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets take turns, a sleeping kernel is queued before the events, and a round is the median of its replays."""
    played = PlayedCuda(lambda number: (1 + number) * 1e-3)
    played.install(monkeypatch)
    clock = GraphClock([lambda name=name: name for name in "abcde"], CUDA)
    assert list("abcde") == clock.results
    played.log.clear()
    assert [4e-3, 5e-3, 1e-3] == pytest.approx(clock.replay(3))
    turns = [f"replay {number}" for number in (3, 4, 0)]
    assert ["sleep", *(word for turn in turns for word in ("event", turn, "event")), "wait"] == played.log
    assert 3e-3 == pytest.approx(clock.round())
    assert "a" == clock.once()


def test_a_failed_capture_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be captured is raised, its capture is ended, and later calls run on the stream that was current before."""
    played = PlayedCuda()
    played.install(monkeypatch)
    before = played.current_stream()
    calls = iter([None, None])

    def fails() -> None:
        try:
            next(calls)
        except StopIteration:
            raise RuntimeError("operation not permitted when stream is capturing") from None

    with pytest.raises(RuntimeError, match="not permitted"):
        GraphClock([fails, fails], CUDA)
    assert before is played.current_stream()
    assert ["wait", "begin 0", "end 0"] == played.log


def test_memory_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it takes at its fullest beyond what was there; nothing is known of a CPU."""
    played = PlayedCuda()
    played.install(monkeypatch)

    def call() -> None:
        played.peak = 42

    assert 42 == peak_bytes(call, CUDA)
    assert peak_bytes(call, torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("set_bytes", "sets"), [(1000 * MIB, 4), (60 * MIB, 4), (30 * MIB, 5), (10 * MIB, 15), (MIB, 64), (0, 64)]
)
def test_sets_exceed_the_cache_three_times(set_bytes: int, sets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four at least, 64 at most, else as many as fill a cache of 50 MiB three times."""
    monkeypatch.setattr(clocks, "cache_bytes", lambda device: 50 * MIB)
    assert sets == sets_for(set_bytes, CUDA)
    assert sets == 64 or sets * set_bytes >= 150 * MIB


@pytest.mark.parametrize(("seconds", "calls"), [(1.0, 4), (1e-3, 5), (1e-4, 50), (1e-9, 100), (0.0, 100)])
def test_a_round_is_about_five_milliseconds(seconds: float, calls: int) -> None:
    """Within four and a hundred calls."""
    assert calls == calls_for(seconds)


def test_call_time_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call begins and ends with an idle device, and sets take turns."""
    played = PlayedCuda()
    played.install(monkeypatch)
    calls: list[Callable[[], None]] = [lambda name=name: played.log.append(name) for name in "ab"]
    clock = CallClock(calls, CUDA, count=3)
    assert clock.round() >= 0
    assert ["wait", "a", "wait", "wait", "b", "wait", "wait", "a", "wait"] == played.log
