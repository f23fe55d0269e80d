"""The compile step: what it refuses, and that the generated files are current."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tuneplan.hardware_profiles.compile import build, main
from tuneplan.hardware_profiles.errors import ProfileError


def test_generated_files_are_up_to_date() -> None:
    """Someone who edits a data file also runs the compile step."""
    assert main(["--check"]) == 0


def test_check_notices_a_change(data_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--check writes nothing and says what to run."""
    assert main(["--check"], data_copy) == 1
    assert not (data_copy / "index_gpus.json").exists()
    assert "index_gpus.json is out of date: run python -m" in capsys.readouterr().err


def test_compile_writes_what_check_wants(data_copy: Path) -> None:
    """The two agree, and a second run changes nothing."""
    assert (main([], data_copy), main(["--check"], data_copy)) == (0, 0)


def test_output_does_not_depend_on_the_folder(data_copy: Path) -> None:
    """The generated text holds no path and no time."""
    assert build(data_copy) == build()


def test_main_reports_a_broken_file(data_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A broken file is exit code 3 and one line."""
    (data_copy / "gpus" / "t4.toml").write_text("id = ")
    assert main([], data_copy) == 3
    assert capsys.readouterr().err.count("\n") == 1


def _edit(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def _append(file: str, line: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        with (root / file).open("a") as stream:
            stream.write(line)

    return change


def _move(file: str, to: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / file).rename(root / to)

    return change


P4DE = "instances/aws/p4de.24xlarge.toml"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_edit("gpus/t4.toml", '"tesla-t4"', '"a100"'), "has the name 'a100' too"),
        (_edit("gpus/t4.toml", 'id = "t4"', 'id = "t5"'), "its id is 't5'"),
        (_edit("gpus/t4.toml", "[sources.gpuhunt]", "[sources.other]"), "which \\[sources\\] does not declare"),
        (_append("gpus/t4.toml", '[sources.idle]\ntitle="x"\nreference="x"\ndate="2026-01-01"\n'), "no figure uses"),
        (_edit(P4DE, '"a100-80g"', '"a100-81g"'), "gpus/ has no 'a100-81g'"),
        (_edit(P4DE, 'provider = "AWS"', 'provider = "GCP"'), "Move it to gcp/"),
        (_edit(P4DE, '"p4de.24xlarge"', '"P4D.24xlarge"'), "is taken"),
        (_edit(P4DE, "gpu_count = 8", "gpu_count = 0"), "gpu_count: "),
        (_edit(P4DE, '"nvlink"', '"NVLink"'), "interconnect: "),
        (_append("prices/aws.csv", "AWS,p9.xlarge,spot,1,us-east-1,2026-01-01,,x\n"), "has no instance 'p9.xlarge'"),
        (_append("prices/aws.csv", "GCP,g2-standard-4,spot,1,r,2026-01-01,,x\n"), "GCP belongs in gcp.csv"),
        (_append("prices/aws.csv", "AWS,g6.xlarge,spot,1,r,,,x\n"), "date_note does not say why"),
        (_append("prices/aws.csv", "AWS,g6.xlarge,spot,1,r,2026-02-30,,x\n"), "aws.csv line .*: date: "),
        (_append("prices/aws.csv", "AWS,g6.xlarge,spot,1,r,2026-02-01,,x\n" * 2), "there is a price for"),
        (_edit("prices/aws.csv", "usd_per_hour", "price"), "its columns are"),
        (_move("gpus/t4.toml", "gpus/t4-card.toml"), "Name the file t4.toml"),
    ],
)
def test_broken_data_is_refused(data_copy: Path, change: Callable[[Path], None], message: str) -> None:
    """Each contradiction between files is found, and the file that has it is named."""
    change(data_copy)
    with pytest.raises(ProfileError, match=message):
        build(data_copy)
