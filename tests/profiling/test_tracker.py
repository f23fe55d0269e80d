"""The storage tracker on tensors whose sizes are known."""

import pytest

torch = pytest.importorskip("torch")

from tuneplan.profiling.timeline import Timeline  # noqa: E402
from tuneplan.profiling.tracker import StorageTracker  # noqa: E402

KIB = 1024


def test_births_and_deaths() -> None:
    """A storage counts from its birth to its death, rounded up to 512 bytes; a view adds nothing."""
    tracker = StorageTracker("cpu")
    with tracker:
        first = torch.empty(256)
        second = torch.empty(1)
        view = first[:10]
        assert KIB + 512 == tracker.live_bytes
        del first
        assert KIB + 512 == tracker.live_bytes
        del view, second
        assert tracker.live_bytes == 0
    assert KIB + 512 == Timeline.of(tracker).peak().peak_bytes


def test_what_existed_before_is_watched_once() -> None:
    """Tensors made before count when they are watched, however often."""
    tensor = torch.empty(256)
    tracker = StorageTracker("cpu")
    tracker.watch([tensor, tensor, tensor.view(16, 16)])

    assert KIB == tracker.live_bytes


def test_other_devices_do_not_count() -> None:
    """Only tensors on the tracked device are counted."""
    tracker = StorageTracker("meta")
    with tracker:
        _ = torch.empty(256)
        kept = torch.empty(256, device="meta")

    assert KIB == tracker.live_bytes == kept.untyped_storage().nbytes()


def test_gradients_are_summed_in_place_as_without_a_mode() -> None:
    """Autograd adds the second gradient of a tensor to the first in place; a dispatch mode alone would make it copy."""
    leaf = torch.empty(256, device="meta", requires_grad=True)
    tracker = StorageTracker("meta")
    tracker.watch([leaf])
    with tracker:
        tracker.phase = "forward"
        used = leaf * 1.0
        value = (used * 2.0).sum() + (used * 3.0).sum()
        tracker.phase = "backward"
        value.backward()

    assert not [a for born, a in tracker.log if born and a.phase == "backward" and a.op == "add.Tensor"]


def test_items_of_meta_tensors_are_answered() -> None:
    """A question about values on the meta device is answered with 1: nothing is padded, nothing is packed."""
    with StorageTracker("meta"):
        assert torch.empty((), device="meta", dtype=torch.bool).item() == 1


def test_counts_of_numbers_are_as_long_as_asked_for() -> None:
    """Tokens by expert, say, which torch cannot count without values; where no length is named, it says so."""
    tracker = StorageTracker("meta")
    with tracker:
        counted = torch.bincount(torch.zeros(64, dtype=torch.int64, device="meta"), minlength=8)
        # without a length the result's depends on values: torch has no such count on meta, and its refusal is passed on
        with pytest.raises(NotImplementedError, match="bincount"):
            torch.bincount(counted)
    assert (counted.shape, counted.dtype) == ((8,), torch.int64)
    assert ["bincount.default"] == [entry.op for birth, entry in tracker.log if birth and entry.op.startswith("bincount")]


def test_rows_taken_and_put_by_a_mask() -> None:
    """On meta their number is told; the gradient of what was written over is a copy, as without a mode."""
    tracker = StorageTracker("meta")
    tracker.places = 3
    mask = torch.zeros(2, 4, dtype=torch.bool, device="meta")
    x = torch.zeros(2, 4, 256, device="meta", requires_grad=True)
    with tracker:
        tracker.phase = "forward"
        y = x.clone()
        taken = y[mask]
        y[mask] = taken + 1
        tracker.phase = "backward"
        gradient = torch.zeros(2, 4, 256, device="meta")
        made = len(tracker.log)
        y.backward(gradient)
    born = [entry.op for birth, entry in tracker.log[made:] if birth]
    assert taken.shape == (3, 256)
    assert "index_put.default" in born


def test_what_is_overlooked_counts_nowhere() -> None:
    """Neither when it is watched nor when a view of it comes out of an operator."""
    tracker = StorageTracker("meta")
    given = torch.zeros(256, device="meta")
    with tracker:
        tracker.overlook([given])
        tracker.watch([given])
        view = given.view(2, 128)
    assert view.shape == (2, 128)
    assert tracker.live_bytes == 0
