"""Two readings against each other: limits, who holds the new bytes, and which cause is named."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydantic")

from regressions import cases, place, reading

from tuneplan.profiling.regression.baseline import Recorded
from tuneplan.profiling.regression.cases import Case
from tuneplan.profiling.regression.compare import Result, compare
from tuneplan.profiling.regression.reading import Reading

OLD, NEW = {"torch": "2.12.0"}, {"torch": "2.13.0"}
ENTRY = 'entry_point = "train.py:build"\n'


def case(folder: Path, more: str = "", what: str = ENTRY) -> Case:
    """A case of one's own code."""
    return cases(folder, f"[cases.a]\n{what}{more}").cases["a"]


def compared(one: Case, before: Reading, now: Reading, old: Any = NEW, new: Any = NEW) -> Result:
    """Now against before."""
    return compare(one, now, Recorded.of(before, {}), new, old)


def test_the_same_passes(tmp_path: Path) -> None:
    """The same bytes are within any limit, whatever their lines are now."""
    found = compared(case(tmp_path), reading(place(512)), reading(place(512, function="other.py:run", line="other.py:99")))

    assert ("ok", [], []) == (found.status, list(found.new_bytes), list(found.causes))


def test_a_new_place_is_found(tmp_path: Path) -> None:
    """New bytes belong to the place that was not there, with all of its bytes."""
    copy = place(256, op="_to_copy.default", line="net.py:12")
    found = compared(case(tmp_path), reading(place(512)), reading(place(512), copy))

    assert "regression" == found.status
    assert ["peak", "activations"] == [change.name for change in found.exceeded]
    assert [(copy, 256, "new")] == [(new.place, new.extra_bytes, new.how) for new in found.new_bytes]


def test_a_place_that_grew(tmp_path: Path) -> None:
    """Of a place that was there only the growth is new."""
    (new,) = compared(case(tmp_path), reading(place(512)), reading(place(2048))).new_bytes

    assert (1536, "grew from 512 bytes") == (new.extra_bytes, new.how)


@pytest.mark.parametrize(
    ("limit", "status"),
    [
        ("max_increase = 256", "ok"),
        ("max_increase = 255", "regression"),
        ("max_increase_percent = 50", "ok"),
        ("max_increase_percent = 49.9", "regression"),
        ("max_increase_percent = 50\nmax_bytes = 767", "regression"),
        ('max_bytes = "1KiB"', "regression"),
        ("max_increase_percent = 50\n[cases.a.components.activations]\nmax_increase = 1", "regression"),
        ("max_increase_percent = 50\n[cases.a.components.logits]\nmax_bytes = 1", "ok"),
    ],
)
def test_limits(tmp_path: Path, limit: str, status: str) -> None:
    """512 bytes that became 768: each limit, absolute or relative, of the peak or of a component, at its edge."""
    assert status == compared(case(tmp_path, limit), reading(place(512)), reading(place(512), place(256, op="x"))).status


def test_a_component_that_grew_behind_the_peak(tmp_path: Path) -> None:
    """A component may grow by no more bytes than the peak may, even where the peak is elsewhere."""
    before = reading(place(1024, "temporary"), highest={"temporary": 1024, "logits": 512})
    now = reading(place(1024, "temporary"), highest={"temporary": 1024, "logits": 768})
    found = compared(case(tmp_path), before, now)

    assert ["logits"] == [change.name for change in found.exceeded]
    assert "ok" == compared(case(tmp_path, "max_increase = 256"), before, now).status


def test_what_lives_longer(tmp_path: Path) -> None:
    """Where no place grew but two overlap now, the one that is alive at the peak and was not is named."""
    gradients = place(256, "gradients")
    apart = {"activations": (place(512),), "gradients": (gradients,)}
    before = reading(place(512), highest={"activations": 512, "gradients": 256}, places=apart)
    now = reading(place(512), gradients)
    found = compared(case(tmp_path), before, now)

    assert [(gradients, 256)] == [(new.place, new.extra_bytes) for new in found.new_bytes]
    assert "alive at the peak" in found.new_bytes[0].how


def test_facts_are_causes(tmp_path: Path) -> None:
    """A fact that changed is named first."""
    before = reading(place(512), facts={"gradient_checkpointing": True, "parameters": 7})
    now = reading(place(1024), facts={"gradient_checkpointing": False, "parameters": 7})

    assert ["gradient checkpointing changed: on -> off"] == compared(case(tmp_path), before, now).causes


def test_what_every_step_leaves_behind(tmp_path: Path) -> None:
    """A loop that piles up is a regression, with the line that makes what is kept."""
    kept = place(1024, "logits", earlier=2, count=3, caller="train.py:5")
    found = compared(case(tmp_path), reading(place(512, "logits")), reading(kept, kept_per_step_bytes=512))

    assert "kept per step" in [change.name for change in found.exceeded]
    assert "every step leaves 512 bytes behind, such as what train.py:5 makes" in found.causes[0]
    assert "2 of 3 kept from an earlier step" == found.new_bytes[0].how


def test_versions_are_the_cause_where_no_own_code_is_involved(tmp_path: Path) -> None:
    """A case in words runs no code of the user's, so other versions are the cause; the same versions are not named."""
    planned = case(tmp_path, what='model = "7b"\n')
    library = place(1024, caller="", line="transformers/x.py:3")
    causes = compared(planned, reading(place(512)), reading(library), OLD, NEW).causes

    assert "versions changed: torch 2.12.0 -> 2.13.0" in causes[0]
    assert "that is the cause" in causes[0]
    assert [] == compared(planned, reading(place(512)), reading(library)).causes


def test_versions_are_likely_where_the_bytes_are_a_librarys(tmp_path: Path) -> None:
    """With own code in the case, versions are the likely cause of new bytes in library code, and not of those in own lines."""
    library = place(1024, caller="train.py:4", line="transformers/x.py:3")
    likely = compared(case(tmp_path), reading(place(512)), reading(library), OLD, NEW).causes
    own = compared(case(tmp_path), reading(place(512)), reading(place(1024)), OLD, NEW).causes

    assert "the likely cause" in likely[0]
    assert own[0].startswith("versions changed too")


def test_less_is_no_regression(tmp_path: Path) -> None:
    """What shrank passes."""
    found = compared(case(tmp_path), reading(place(1024)), reading(place(512)))

    assert ("ok", -512, -50.0) == (found.status, found.changes[0].difference_bytes, found.changes[0].percent)
