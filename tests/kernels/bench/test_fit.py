"""Played rows to the `[kernels]` section: known numbers come back, and what cannot be fitted says why."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tuneplan.hardware_profiles.calibrations import read_calibration
from tuneplan.kernels.bench.cases import Case, dequantize_4bit, lora_linear
from tuneplan.kernels.bench.fit import fit, least_squares, main
from tuneplan.kernels.bench.rows import Row, bench_key, row
from tuneplan.kernels.bench.shapes import Shape, all_shapes
from tuneplan.kernels.errors import KernelInputError

PROVENANCE = {
    "date": "2026-01-02T03:04:05+00:00",
    "git_commit": "abc",
    "device": {"name": "Played GPU"},
    "driver": "580",
    "cuda": "13.0",
    "libraries": {"torch": "2.11"},
}
COPY = 4e12
LAUNCH, SLOPE = {"tuneplan": 3e-6, "bitsandbytes": 9e-6}, {"tuneplan": 6.5e-13, "bitsandbytes": 1.3e-12}
TRAFFIC = {"tuneplan": (4.0, 4.0), "bitsandbytes": (24.0, 8.0)}
CEILINGS = {
    "copy_bytes_per_second": COPY,
    "tokens": [64, 4096],
    "tokens_flops_per_second": [1e14, 7e14],
    "launch_seconds": 2e-6,
}


def timed(case: Case, name: str, seconds: float, **more: Any) -> Row:
    """A row of a GPU."""
    body = {
        "kernel": case.kernel,
        "case": case.as_json(),
        "implementation": name,
        "state": "measured",
        "clock": "cuda graph",
        "device_seconds": {"median": seconds},
    }
    return row("bench", bench_key(case, name), PROVENANCE, **{**body, **more})


def played() -> list[Row]:
    """Rows of two implementations that follow the formulas exactly."""
    rows = [row("ceilings", "Played GPU", PROVENANCE, on_gpu=True, ceilings=CEILINGS)]
    for name, launch in LAUNCH.items():
        rows += [timed(case, name, launch + SLOPE[name] * case.shape.weights) for case in dequantize_4bit(all_shapes())]
        for case in lora_linear([Shape(4096, 4096), Shape(11008, 4096), Shape(4096, 11008)], [1024, 4096]):
            n, k, m = case.shape.out_features, case.shape.in_features, case.tokens
            moved = m * (TRAFFIC[name][0] * n + TRAFFIC[name][1] * k) if case.rank else 0
            rows.append(timed(case, name, 4 * m * n * k / 7e14 + moved / COPY))
    return rows


def test_known_numbers_come_back() -> None:
    """Launch, slope and traffic of each implementation; the ceilings as they were; where all of it comes from."""
    speeds = fit(played(), ["a.jsonl"])
    for name, launch in LAUNCH.items():
        found = speeds.dequantize_4bit[name]
        assert launch == pytest.approx(found.launch_seconds, rel=1e-6)
        assert SLOPE[name] == pytest.approx(found.seconds_per_weight, rel=1e-9)
        assert 0 == pytest.approx(found.residual_percent, abs=1e-6)
        assert {str(shape) for shape in all_shapes()} == set(found.rows)
        traffic = speeds.lora[name]
        assert TRAFFIC[name] == pytest.approx((traffic.bytes_per_token_output, traffic.bytes_per_token_input), rel=1e-6)
    assert (COPY, 2e-6) == (speeds.copy_bytes_per_second, speeds.launch_seconds)
    assert speeds.gemm is not None
    assert ((64, 4096), (1e14, 7e14)) == (speeds.gemm.tokens, speeds.gemm.flops_per_second)
    assert ("Played GPU", "580", "torch 2.11", "a.jsonl") == tuple(
        speeds.measured[key] for key in ("device", "driver", "libraries", "results")
    )


def test_noise_is_the_residual() -> None:
    """Rows that are off by 3 % are fitted with about that residual, and the worst row decides it."""
    rows = played()
    rows += [
        timed(case, "tuneplan", (1 + (-1) ** number * 0.03) * (LAUNCH["tuneplan"] + SLOPE["tuneplan"] * case.shape.weights))
        for number, case in enumerate(dequantize_4bit(all_shapes()))
    ]
    found = fit(rows, ["a.jsonl"]).dequantize_4bit["tuneplan"]
    assert 2 < found.residual_percent < 6
    assert SLOPE["tuneplan"] == pytest.approx(found.seconds_per_weight, rel=0.03)


def test_no_number_is_negative() -> None:
    """Where the best line would start below 0, it starts at 0; columns that are alike share."""
    line = least_squares([(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)], [0.5, 2.0, 3.5])
    assert line.first == 0
    assert line.second > 0
    alike = least_squares([(2.0, 2.0), (4.0, 4.0)], [2.0, 4.0])
    assert 1 == pytest.approx(alike.first + alike.second)


def test_what_does_not_count() -> None:
    """Wall times, wrong results and other formats are no speeds of a card."""
    case = Case("dequantize_4bit", Shape(64, 64))
    others = [
        timed(case, "tuneplan", 1.0, clock="wall"),
        timed(Case("dequantize_4bit", Shape(64, 128)), "tuneplan", 1.0, state="wrong"),
        timed(Case("dequantize_4bit", Shape(64, 64), format="fp4"), "tuneplan", 1.0),
    ]
    assert fit([*played(), *others], ["x"]) == fit(played(), ["x"])
    with pytest.raises(KernelInputError, match="no device times of a GPU"):
        fit(others, ["x"])
    other_card = row("check", "shapes", {**PROVENANCE, "device": {"name": "Another"}}, state="measured")
    with pytest.raises(KernelInputError, match="several devices"):
        fit([*played(), other_card], ["x"])


def test_from_files_to_a_calibration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is written, read back, and keeps the constants that it had; another card's is refused."""
    results, out = tmp_path / "results", tmp_path / "h200.toml"
    results.mkdir()
    (results / "rows.jsonl").write_text("\n".join(map(json.dumps, played())), encoding="utf-8")
    out.write_text('gpu = "h200"\n[memory_share]\nvalue = 0.9\nfitted_to = ["a step"]\n', encoding="utf-8")
    assert main([str(results), "--gpu", "h200", "--out", str(out)]) == 0
    found = read_calibration(out)
    assert {"memory_share": 0.9} == found.constants
    assert found.kernels is not None
    assert SLOPE == pytest.approx({name: one.seconds_per_weight for name, one in found.kernels.dequantize_4bit.items()})
    assert main([str(results), "--gpu", "a100-80g", "--out", str(out)]) == 2
    assert main([str(tmp_path / "nothing.jsonl"), "--gpu", "h200"]) == 2
    captured = capsys.readouterr()
    assert "" == captured.out
    assert "is of h200, not of a100-80g" in captured.err
    assert "no rows are in" in captured.err
