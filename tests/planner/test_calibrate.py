"""A card's constants fitted to measured steps: recovered where they are known, judged on other rows, read back."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from measured_steps import CARD, CASES, RUNTIME, TRUTH, documents, write_rows

from tuneplan.hardware_profiles.calibrations import read_calibration, to_toml
from tuneplan.hardware_profiles.errors import ProfileError
from tuneplan.planner.calibrate import fit
from tuneplan.planner.errors import InputError
from tuneplan.planner.estimate import estimate
from tuneplan.planner.measurements import Measurement, read_measurements


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Half as documents of their own, half as lines of a campaign."""
    folder = tmp_path_factory.mktemp("results")
    paths = []
    for index, document in enumerate(documents()[:6]):
        path = folder / f"{index}.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        paths.append(str(path))
    return [*paths, write_rows(folder, documents()[6:])]


def test_known_constants_are_found(results: list[str]) -> None:
    """Steps that the model itself made with other constants give these constants back, and rows that judge are met."""
    found = fit(CARD, *read_measurements(results))
    constants = found.calibration.constants
    assert constants["runtime_bytes"] == RUNTIME
    for name in ("matmul_share", "host_forward_seconds"):
        assert constants[name] == pytest.approx(TRUTH[name], rel=0.05)
    before, after = found.error(after=False), found.error(after=True)
    assert before is not None
    assert after is not None
    assert after < 0.03 < before
    assert len(CASES) == len(found.rows) == 2 * sum(row.chose for row in found.rows)


def test_it_is_read_back_as_written(results: list[str], tmp_path: Path) -> None:
    """The file holds every constant with its rows and where they were measured, and changes estimates of that card."""
    calibration = fit(CARD, *read_measurements(results)).calibration
    path = tmp_path / "a100.toml"
    path.write_text(to_toml(calibration), encoding="utf-8")
    again = read_calibration(path)
    assert again.constants == pytest.approx(dict(calibration.constants), rel=1e-5)
    assert again.fitted == calibration.fitted
    assert ("A100", "570", "2026-11-20", "torch 2.13") == tuple(
        again.measured[key] for key in ("device", "driver", "date", "libraries")
    )
    request = read_measurements(results)[0][0].request
    with_it = estimate(replace(request, gpu=replace(CARD, calibration=again)), advice=False)
    without = estimate(replace(request, gpu=CARD), advice=False)
    assert with_it.runtime.total_bytes == RUNTIME != without.runtime.total_bytes
    assert with_it.basis()["step_seconds"].startswith("calibrated")
    assert without.basis()["step_seconds"].startswith("modelled")


def test_too_few_rows(results: list[str]) -> None:
    """What cannot be fitted and judged is refused; untimed steps do not count."""
    measurements = read_measurements(results)[0]
    with pytest.raises(InputError, match="3 timed steps"):
        fit(CARD, measurements[:3])
    untimed: list[Measurement] = [replace(m, step_seconds=None) for m in measurements]
    with pytest.raises(InputError, match="0 timed steps"):
        fit(CARD, untimed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no measured step"),
        ("[1, 2]", "is not a result"),
        ('{"source": "estimated"}', "holds no measured step"),
        ("{]", "line 1 is not JSON"),
    ],
)
def test_files_that_are_no_results(tmp_path: Path, text: str, message: str) -> None:
    """The file is named, and what to give."""
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_measurements([str(path)])


def test_rows_that_the_planner_does_not_know_are_told(tmp_path: Path) -> None:
    """A model outside the catalog is left out, with its name."""
    document = documents()[0]
    document["request"]["model"] = "someone/else"
    path = tmp_path / "x.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    found, left_out = read_measurements([str(path)])
    assert [] == found
    assert "someone/else" in left_out[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu = 3", "must name its gpu"),
        ('gpu = "a100-80g"\nspeed = 1', "'speed' is not known"),
        ('gpu = "a100-80g"\n[matmul_share]\nvalue = 0.5', "fitted_to"),
        ('gpu = "a100-80g"\n[matmul_share]\nvalue = 7\nfitted_to = ["a"]', "not within 0 and 1.2"),
        ('gpu = "a100-80g"\n[matmul_share]\nvalue = true\nfitted_to = ["a"]', "a number as value"),
        ("gpu =", "not TOML"),
    ],
)
def test_broken_calibrations(tmp_path: Path, text: str, message: str) -> None:
    """File and key are named."""
    path = tmp_path / "x.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ProfileError, match=message):
        read_calibration(path)
