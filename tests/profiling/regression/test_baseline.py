"""The baseline file: read as it was written, and refused where anything else wrote it."""

from pathlib import Path

import pytest

pytest.importorskip("pydantic")

from regressions import place, reading

from tuneplan.planner.errors import InputError
from tuneplan.profiling.regression.baseline import Baseline, Recorded, read, render, write

SETTINGS = {"device": "meta", "model": "7b", "seq_len": 64}
STEP = reading(place(1024), place(512, "logits", module='odd "name" | \x7f', op="b"), facts={"gradient_checkpointing": True})
BASELINE = Baseline({"torch": "2.13.0"}, {"a.b": Recorded.of(STEP, SETTINGS), "c": Recorded.of(STEP, {})})


def test_round_trip(tmp_path: Path) -> None:
    """What was written is what is read, whatever characters a name has."""
    path = tmp_path / "baseline.toml"

    assert write(path, BASELINE, "tuneplan.toml")
    assert read(path) == BASELINE


def test_an_update_without_a_change_writes_nothing(tmp_path: Path) -> None:
    """The file's time stays, so that an update that changes nothing leaves no trace."""
    path = tmp_path / "baseline.toml"
    write(path, BASELINE, "tuneplan.toml")

    assert not write(path, BASELINE, "tuneplan.toml")


def test_one_value_a_line_and_sorted() -> None:
    """Rows of a table are sorted, so that two branches change different lines."""
    text = render(BASELINE, "tuneplan.toml")
    start = text.index("[cases.c.at_peak]")

    assert ["activations = 1024", "logits = 512"] == text[start:].splitlines()[1:3]
    assert text.isascii()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("peak_bytes = 1536", "peak_bytes = 1537", "sums to 1536, but the total says 1537"),
        ("activations = 1024", "activations = 1023", "edited by hand or merged badly"),
        ("peak_bytes = 1536", "peak_bytes = -1", "greater than or equal to 0"),
        ("peak_bytes = 1536", 'peak_bytes = "much"', "valid integer"),
        ("peak_bytes = 1536\n", "", "field required"),
        ("peak_bytes = 1536", "peak_bytes = 1536\nextra = 1", "unknown key"),
        ("schema_version = 1", "schema_version = 99", "schema_version 99"),
        ("schema_version = 1", "", "schema_version None"),
        ("[versions]", "<<<<<<< ours\n[versions]", "merge conflict"),
        ("[versions]", "[versions", "is not TOML"),
    ],
)
def test_broken_files(tmp_path: Path, old: str, new: str, message: str) -> None:
    """What no update wrote is refused, with the way back."""
    path = tmp_path / "baseline.toml"
    text = render(BASELINE, "tuneplan.toml")
    assert old in text
    path.write_text(text.replace(old, new))

    with pytest.raises(InputError) as refusal:
        read(path)
    assert message in str(refusal.value)


def test_missing(tmp_path: Path) -> None:
    """The first run says how to record."""
    with pytest.raises(InputError, match=r"no baseline .* yet; run plan check --update"):
        read(tmp_path / "baseline.toml")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A file that cannot be written is an error, and leaves nothing behind."""
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "none" / "baseline.toml", BASELINE, "tuneplan.toml")
    assert [] == list(tmp_path.iterdir())
