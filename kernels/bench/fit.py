"""Rows of results to the `[kernels]` section of a card's calibration.

    python -m tuneplan.kernels.bench.fit kernels/results/h200 --gpu h200 --out hardware_profiles/calibration/h200.toml

Dequantization of each implementation is `a + b * weights`, by least squares of relative errors, neither below 0. An adapter's
traffic is what its layer takes longer than the same layer without one, at the bandwidth of the copy, shared out over
tokens x out_features and tokens x in_features. Only rows timed on a GPU count. Constants that the file holds already stay.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tuneplan.hardware_profiles.calibrations import Calibration, read_calibration, to_toml
from tuneplan.hardware_profiles.errors import ProfileError
from tuneplan.hardware_profiles.kernel_speeds import IMPLEMENTATIONS, DequantizeFit, GemmCurve, KernelSpeeds, LoraTraffic
from tuneplan.kernels.bench.cases import Case
from tuneplan.kernels.bench.rows import MEASURED, Row, newest, read_rows
from tuneplan.kernels.errors import KernelInputError

LEAST_ROWS = 3
"""Shapes that a fit of two numbers needs, so that a residual says something."""


@dataclass(frozen=True, slots=True)
class Line:
    """`y = first * x1 + second * x2`, neither below 0, fitted to rows.

    Args:
        first: of the first column.
        second: of the second one.
        residual_percent: the largest relative gap of a row.
    """

    first: float
    second: float
    residual_percent: float


def least_squares(columns: Sequence[tuple[float, float]], values: Sequence[float]) -> Line:
    """The line with the least sum of squared relative errors, by its normal equations.

    Where one number would be negative it is 0, and the other is fitted alone.

    Args:
        columns: x1 and x2 of each row.
        values: y of each row, above 0.
    """
    scaled = [(one / y, two / y) for (one, two), y in zip(columns, values, strict=True)]
    aa, bb = sum(a * a for a, _ in scaled), sum(b * b for _, b in scaled)
    ab, a1, b1 = sum(a * b for a, b in scaled), sum(a for a, _ in scaled), sum(b for _, b in scaled)
    determinant = aa * bb - ab * ab
    first = (a1 * bb - b1 * ab) / determinant if determinant > 1e-12 * aa * bb else -1.0
    second = (b1 * aa - a1 * ab) / determinant if determinant > 1e-12 * aa * bb else -1.0
    if first < 0 or second < 0:
        alone = [(a1 / aa if aa else 0.0, 0.0), (0.0, b1 / bb if bb else 0.0)]
        first, second = min(alone, key=lambda one: _squares(scaled, *one))
    gaps = [abs(a * first + b * second - 1) for a, b in scaled]
    return Line(first, second, 100 * max(gaps))


def _squares(scaled: Iterable[tuple[float, float]], first: float, second: float) -> float:
    return sum((a * first + b * second - 1) ** 2 for a, b in scaled)


def fit(rows: Sequence[Row], files: Sequence[str]) -> KernelSpeeds:
    """The speeds of one card.

    Args:
        rows: of its results; a key that is there twice counts as it came last.
        files: their names.

    Raises:
        KernelInputError: rows of several devices, of a CPU, or none that a fit can use.
    """
    rows = newest(rows)
    names = {row["provenance"]["device"]["name"] for row in rows}
    if len(names) > 1:
        raise KernelInputError(f"the rows are of several devices ({', '.join(sorted(names))}); give those of one card")
    timed = [row for row in rows if row["kind"] == "bench" and row["state"] == MEASURED and row["clock"] == "cuda graph"]
    ceilings = next((row["ceilings"] for row in reversed(rows) if row["kind"] == "ceilings" and row.get("on_gpu")), None)
    dequantized = _dequantized(timed)
    copy = ceilings and ceilings["copy_bytes_per_second"]
    speeds = KernelSpeeds(
        dequantized,
        _adapters(timed, copy) if copy else {},
        GemmCurve(tuple(ceilings["tokens"]), tuple(ceilings["tokens_flops_per_second"]))
        if ceilings and ceilings["tokens"]
        else None,
        copy,
        ceilings and ceilings["launch_seconds"],
        _measured(rows, files),
    )
    if not dequantized and not ceilings:
        raise KernelInputError(
            f"no device times of a GPU are in {', '.join(files)}: {LEAST_ROWS} shapes of dequantize_4bit, or ceilings, are needed"
        )
    return speeds


def _dequantized(rows: Iterable[Row]) -> dict[str, DequantizeFit]:
    """Of NF4 with nested scales to bf16, in blocks of 64: what QLoRA runs."""
    found: dict[str, list[tuple[Case, float]]] = {}
    for row in rows:
        case = Case.from_json(row["case"])
        if case == Case("dequantize_4bit", case.shape):
            found.setdefault(row["implementation"], []).append((case, row["device_seconds"]["median"]))
    fits = {}
    for name in IMPLEMENTATIONS:
        own = found.get(name, [])
        if len(own) < LEAST_ROWS:
            continue
        line = least_squares([(1.0, case.shape.weights) for case, _ in own], [seconds for _, seconds in own])
        if line.second > 0:
            labels = tuple(str(case.shape) for case, _ in own)
            fits[name] = DequantizeFit(line.first, line.second, line.residual_percent, labels)
    return fits


def _adapters(rows: Iterable[Row], copy_bytes_per_second: float) -> dict[str, LoraTraffic]:
    """From pairs of rows, with and without an adapter, of one implementation at one shape."""
    seconds = {
        (row["implementation"], Case.from_json(row["case"])): row["device_seconds"]["median"]
        for row in rows
        if row["kernel"] == "lora_linear"
    }
    found = {}
    for name in IMPLEMENTATIONS:
        pairs = [
            (case, time - seconds[name, replace(case, rank=0)])
            for (own, case), time in seconds.items()
            if own == name and case.rank and (name, replace(case, rank=0)) in seconds
        ]
        pairs = [(case, time) for case, time in pairs if time > 0]
        if len(pairs) >= LEAST_ROWS:
            columns = [
                (float(case.tokens * case.shape.out_features), float(case.tokens * case.shape.in_features)) for case, _ in pairs
            ]
            line = least_squares(columns, [time * copy_bytes_per_second for _, time in pairs])
            found[name] = LoraTraffic(line.first, line.second)
    return found


def _measured(rows: Sequence[Row], files: Sequence[str]) -> dict[str, str]:
    """Device, driver, libraries, dates, commits and files of the rows, each value once."""
    found: dict[str, list[str]] = {}
    for row in rows:
        origin = row["provenance"]
        libraries = origin.get("libraries") or {}
        facts: Mapping[str, object] = {
            "device": origin["device"]["name"],
            "driver": origin.get("driver"),
            "cuda": origin.get("cuda"),
            "libraries": ", ".join(f"{key} {value}" for key, value in libraries.items()),
            "date": str(origin.get("date") or "")[:10],
            "commit": origin.get("git_commit"),
        }
        for name, value in facts.items():
            if value and str(value) not in found.setdefault(name, []):
                found[name].append(str(value))
    joined = {name: "; ".join(values) for name, values in found.items() if values}
    return {**joined, "results": ", ".join(files)}


def calibrated(gpu: str, speeds: KernelSpeeds, out: Path | None) -> Calibration:
    """The calibration of a card with these speeds; constants of a file that exists are kept.

    Raises:
        KernelInputError: the file is of another card.
        ProfileError: the file cannot be read.
    """
    if out is None or not out.exists():
        return Calibration(gpu, {}, kernels=speeds)
    existing = read_calibration(out)
    if existing.gpu != gpu:
        raise KernelInputError(f"{out} is of {existing.gpu}, not of {gpu}; choose another file")
    return replace(existing, kernels=speeds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, fit, and print or write the calibration."""
    parser = argparse.ArgumentParser(description="Kernel results to the [kernels] section of a calibration.")
    parser.add_argument("results", type=Path, nargs="+", help="files of JSON lines, or folders of them")
    parser.add_argument("--gpu", required=True, help="the card by the planner's name, such as h200")
    parser.add_argument("--out", type=Path, default=None, help="calibration file to write; its constants are kept")
    given = parser.parse_args(arguments)
    try:
        rows = [row for path in given.results for row in read_rows(path)]
        if not rows:
            raise KernelInputError(f"no rows are in {', '.join(map(str, given.results))}; give files that plan bench --out wrote")
        text = to_toml(calibrated(given.gpu, fit(rows, [str(path) for path in given.results]), given.out))
        if given.out is None:
            sys.stdout.write(text)
        else:
            given.out.write_text(text, encoding="utf-8")
    except (KernelInputError, ProfileError, OSError) as error:
        sys.stderr.write(f"fit: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
