"""Tracked blocks: phases, places, callers, and what an earlier step left."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tuneplan.profiling.regression.block import track  # noqa: E402
from tuneplan.profiling.regression.tracked import in_project, read, short_path  # noqa: E402
from tuneplan.profiling.regression.watch import watch  # noqa: E402

HERE = Path(__file__).resolve()
ROOT = HERE.parents[3]
KIB = 1024


def test_phases_need_no_word_from_the_code() -> None:
    """Forward, backward and update are told apart by hooks, and each component is found."""
    model = torch.nn.Linear(256, 256, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        with track(model, optimizer, None, ROOT) as memory:
            model(torch.ones(2, 256)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    weight = 256 * 256 * 4
    assert {"forward", "backward", "optimizer_step"} == set(memory.phases)
    assert (weight, weight) == (memory.components["weights"], memory.components["gradients"])
    assert memory.components["optimizer_states"] == 2 * weight + 512
    assert memory.peak_bytes == sum(memory.components.values())


def test_hooks_are_gone_afterwards() -> None:
    """Nothing of the tracker is left in torch, also where the block raises."""
    backward = torch.autograd.backward

    def broken() -> None:
        with track(None, None, None, ROOT):
            raise ValueError("in the block")

    with pytest.raises(ValueError, match="in the block"):
        broken()
    assert backward is torch.autograd.backward


def test_a_place_has_its_line() -> None:
    """New bytes are at the line of this file that asked for them; what is born and dies does not add up."""
    with track(None, None, "cpu", ROOT) as memory:
        kept = [torch.empty(256) for _ in range(3)]
        del kept[:]
        kept = [torch.empty(256)]

    (place,) = memory.places
    assert (3 * KIB, 3) == (memory.peak_bytes, place.count)
    assert place.caller == place.line
    assert place.line.startswith("tests/profiling/regression/test_tracked.py:")
    assert len(kept) == 1


def test_what_an_earlier_step_left_is_told_apart() -> None:
    """Storages of the step before that are still alive are counted, and what every step piles up."""
    history = []
    starts = []
    with watch(ROOT, "cpu") as tracker:
        for _ in range(3):
            starts.append(len(tracker.log))
            history.append(torch.empty(256))
        log = list(tracker.log)
    found = read(log, starts[-1], len(log), ROOT, tracker.callers, previous_start=starts[-2])

    assert (3 * KIB, KIB) == (found.peak_bytes, found.kept_per_step_bytes)
    assert 2 == sum(place.earlier for place in found.places["activations"])


def test_paths_are_those_of_any_machine() -> None:
    """From the project's root, or from the folder of installed libraries; libraries inside the project are not the project."""
    library = str(ROOT / ".venv/lib/python3.11/site-packages/transformers/x.py")

    assert "transformers/x.py" == short_path(library, ROOT)
    assert "tests/profiling/regression/test_tracked.py" == short_path(str(HERE), ROOT)
    assert in_project(str(HERE), ROOT)
    assert not in_project(library, ROOT)
    assert not in_project("/elsewhere/train.py", ROOT)
    assert not in_project("<string>", ROOT)
