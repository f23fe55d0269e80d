"""The `[kernels]` section of a calibration: read back as written, and every way in which it can be wrong."""

from pathlib import Path

import pytest

from tuneplan.hardware_profiles.calibrations import Calibration, read_calibration, to_toml
from tuneplan.hardware_profiles.errors import ProfileError
from tuneplan.hardware_profiles.kernel_speeds import DequantizeFit, GemmCurve, KernelSpeeds, LoraTraffic

SPEEDS = KernelSpeeds(
    dequantize_4bit={
        "bitsandbytes": DequantizeFit(9e-06, 1.25e-12, 4.5, ("4096x4096", "11008x4096")),
        "tuneplan": DequantizeFit(3e-06, 6.5e-13, 2.5, ("4096x4096", 'a "quoted" row')),
    },
    lora={"tuneplan": LoraTraffic(2.0, 2.0)},
    gemm=GemmCurve((1, 512, 4096), (1e12, 4.5e14, 7e14)),
    copy_bytes_per_second=4.25e12,
    launch_seconds=2.5e-06,
    measured={"device": "played", "results": "rows.jsonl"},
)


def written(tmp_path: Path, text: str) -> Path:
    """A file with some text."""
    path = tmp_path / "h200.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("speeds", [SPEEDS, KernelSpeeds(), KernelSpeeds(copy_bytes_per_second=1e12)])
def test_it_is_read_back_as_written(speeds: KernelSpeeds, tmp_path: Path) -> None:
    """All parts, none, and one: nothing is lost, and the constants beside them stay."""
    calibration = Calibration("h200", {"memory_share": 0.9}, {"memory_share": ("a row",)}, {"date": "today"}, speeds)
    found = read_calibration(written(tmp_path, to_toml(calibration)))
    assert found.constants == {"memory_share": 0.9}
    assert found.kernels == (speeds if speeds != KernelSpeeds() else None)


def test_without_a_section_there_are_no_speeds(tmp_path: Path) -> None:
    """An older file has none."""
    assert read_calibration(written(tmp_path, 'gpu = "h200"')).kernels is None


def test_seconds_of_a_weight() -> None:
    """The launch and the slope."""
    assert 9e-06 + 1.25e-12 * 4096**2 == SPEEDS.dequantize_4bit["bitsandbytes"].seconds(4096**2)


FIT = (
    "[kernels.dequantize_4bit.tuneplan]\nlaunch_seconds = 3e-6\nseconds_per_weight = 6e-13\nresidual_percent = 2\nrows = ['x']\n"
)
MEASURED = "[kernels.measured]\ndevice = 'played'\n"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("kernels = 3", "kernels must be a table"),
        ("[kernels.speed]", "kernels.speed is not known; write some of dequantize_4bit"),
        ("[kernels.dequantize_4bit.mine]", "kernels.dequantize_4bit.mine is not known; write some of bitsandbytes"),
        ("[kernels.dequantize_4bit]\ntuneplan = 1", "kernels.dequantize_4bit.tuneplan must be a table"),
        (FIT.replace("3e-6", "'fast'") + MEASURED, "launch_seconds must be a finite number"),
        (FIT.replace("3e-6", "nan") + MEASURED, "launch_seconds must be a finite number"),
        (FIT.replace("3e-6", "1" + "0" * 400) + MEASURED, "launch_seconds must be a finite number"),
        (FIT.replace("3e-6", "-1e-6") + MEASURED, "launch_seconds is -1e-06, which is not within 0 and 1"),
        (FIT.replace("6e-13", "0") + MEASURED, "seconds_per_weight is 0, which is not within 0 and 1"),
        (FIT.replace("['x']", "[]") + MEASURED, "rows must list the results"),
        (FIT.replace("rows", "row") + MEASURED, "tuneplan.row is not known"),
        (FIT, "kernels.measured must say on what"),
        ("[kernels.gemm]\ntokens = [1, 2]\nflops_per_second = [1e12]", "kernels.gemm must have as many tokens"),
        (
            "[kernels.gemm]\ntokens = [2, 1]\nflops_per_second = [1e12, 2e12]",
            "kernels.gemm.tokens must be whole numbers that rise",
        ),
        ("[kernels.gemm]\ntokens = [1]\nflops_per_second = [0]", "kernels.gemm.rate is 0"),
        ("[kernels.copy]\nbytes_per_second = true", "kernels.copy.bytes_per_second must be a finite number"),
        ("[kernels.launch]\nseconds = 2", "kernels.launch.seconds is 2"),
    ],
)
def test_a_wrong_section_is_refused(section: str, message: str, tmp_path: Path) -> None:
    """The message names the file and the key."""
    path = written(tmp_path, f'gpu = "h200"\n{section}')
    with pytest.raises(ProfileError, match=message) as caught:
        read_calibration(path)
    assert str(path) in str(caught.value)
