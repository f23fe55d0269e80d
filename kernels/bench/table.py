"""The table of kernels/README.md, written from the rows of `kernels/results/` between two markers.

PYTHONPATH=src python -m tuneplan.kernels.bench.table
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tuneplan.kernels.bench.cases import Case
from tuneplan.kernels.bench.rows import MEASURED, RESULTS, Row, newest, read_rows

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
NOTHING_ON_A_GPU = "On a GPU: not measured yet."
_BENCH = ("case", "implementation", "device", "call", "share of copy", "of roofline", "ratio", "peak")
_SWEEP = ("case", "constants now", "fastest of those tried", "constants", "ratio")
_STEP = ("step", "implementation", "seconds", "tokens a second", "peak", "ratio")


def render(folder: Path = RESULTS) -> str:
    """The text between the markers."""
    devices = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.exists() else []
    parts: list[str] = []
    on_gpu = False
    for path in devices:
        rows = newest(read_rows(path))
        if rows:
            on_gpu = on_gpu or any(row["provenance"]["device"].get("compute_capability") for row in rows)
            parts += _device(path.name, rows)
    head = [] if on_gpu else [NOTHING_ON_A_GPU, ""]
    return "\n".join([*head, *parts]).strip()


def _device(folder: str, rows: Sequence[Row]) -> list[str]:
    bench = [row for row in rows if row["kind"] == "bench" and row["state"] != "not run"]
    steps = [row for row in rows if row["kind"] == "step"]
    checks = [row for row in rows if row["kind"] == "check" and row["state"] != "not run"]
    parts = [f"### {rows[0]['provenance']['device']['name']}", "", _origin(rows, folder), ""]
    for row in rows:
        if row["kind"] == "ceilings":
            best = row["ceilings"]
            parts += [
                f"Copy {best['copy_bytes_per_second'] / 1e9:,.1f} GB/s (bytes read and written), bf16 product "
                f"{best['product_size']}^3 {best['product_flops_per_second'] / 1e12:,.2f} TFLOP/s.",
                "",
            ]
    if checks:
        wrong = [row for row in checks if row["state"] != MEASURED]
        parts += [
            f"{len(checks) - len(wrong)} of {len(checks)} checks hold.",
            *(f"- {r['key']}: {r['reason']}" for r in wrong),
            "",
        ]
    if bench:
        parts += [*_head(_BENCH), *(_bench(row) for row in bench), ""]
    if steps:
        parts += [*_head(_STEP), *(_step(row) for row in steps), ""]
    swept = _swept(rows)
    if swept:
        parts += [*_head(_SWEEP), *swept, ""]
    return parts


def _head(names: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]


def _origin(rows: Sequence[Row], folder: str) -> str:
    """Versions, day and commit of the rows, and where they lie."""
    origins = [row["provenance"] for row in rows]
    libraries = {f"{name} {version}" for origin in origins for name, version in (origin["libraries"] or {}).items()}
    facts = [
        *(f"driver {one}" for one in _once(origin.get("driver") for origin in origins)),
        *(f"CUDA {one}" for one in _once(origin.get("cuda") for origin in origins)),
        *sorted(libraries),
        ", ".join(_once(str(origin["date"])[:10] for origin in origins)),
        *(f"commit {str(one)[:10]}" for one in _once(origin.get("git_commit") for origin in origins)),
    ]
    clocks = "wall time of calls" if not any(row.get("clock") == "cuda graph" for row in rows) else "device time of CUDA graphs"
    return f"`results/{folder}`: {', '.join(facts)}; {clocks}."


def _once(values: Iterable[object]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value))


def _bench(row: Row) -> str:
    label = Case.from_json(row["case"]).label
    if row["state"] != MEASURED:
        return f"| {label} | {row['implementation']} | {row['state']}: {row['reason']} | | | | | |"
    times = [_microseconds((row[key] or {}).get("median")) for key in ("device_seconds", "call_seconds")]
    peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:,.1f} MiB"
    shares = f"{row['share_of_copy']:.1%} | {row['share_of_roofline']:.1%}"
    return f"| {label} | {row['implementation']} | {' | '.join(times)} | {shares} | {_against(row['versus'])} | {peak} |"


def _step(row: Row) -> str:
    label = row["key"].rpartition(" / ")[0]
    if row["state"] != MEASURED:
        return f"| {label} | {row.get('implementation', '')} | {row['state']}: {row['reason']} | | | |"
    peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.2f} GiB"
    figures = f"{row['step_seconds']['median']:.4g} | {row['tokens_per_second']:,.0f} | {peak} | {_against(row['versus'])}"
    return f"| {label} ({row['model']}) | {row['implementation']} | {figures} |"


def _swept(rows: Sequence[Row]) -> list[str]:
    """For each case of a sweep the constants as they are, and the fastest."""
    lines = []
    measured = [row for row in rows if row["kind"] == "sweep" and row["state"] == MEASURED]
    for label in dict.fromkeys(Case.from_json(row["case"]).label for row in measured):
        own = [row for row in measured if Case.from_json(row["case"]).label == label]
        now = next((row for row in own if not row["choice"]), None)
        best = min(own, key=lambda row: float(row["device_seconds"]["median"]))
        chosen = " ".join(f"{key}={value}" for key, value in best["choice"].items()) or "as they are"
        versus = best["versus_now"]
        ratio = f"{versus['value']:.2f}x: {versus['verdict']} (noise {versus['noise']:.2f}x)" if versus else ""
        times = [_microseconds(row["device_seconds"]["median"] if row else None) for row in (now, best)]
        lines.append(f"| {label} | {times[0]} | {times[1]} | {chosen} | {ratio} |")
    return lines


def _against(versus: Row | None) -> str:
    if not versus:
        return ""
    return f"{versus['value']:.2f}x the time of {versus['implementation']}: {versus['verdict']} (noise {versus['noise']:.2f}x)"


def _microseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e6:,.1f} us"


def updated(text: str, table: str) -> str:
    """A README with the table between its markers. Raises ValueError where it lacks them."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8"), render()), encoding="utf-8")
    sys.exit(0)
