"""A calibration as a table and as JSON: the constants, and each row with and without them."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuneplan.hardware_profiles.calibrations import UNITS
from tuneplan.planner.calibrate import Fit


def fit_json(found: Fit) -> dict[str, Any]:
    """The whole fit."""
    calibration = found.calibration
    return {
        "gpu": calibration.gpu,
        "constants": {
            name: {"value": value, "unit": UNITS[name], "fitted_to": list(calibration.fitted[name])}
            for name, value in calibration.constants.items()
        },
        "measured": dict(calibration.measured),
        "rows": [
            {
                "label": row.label,
                "measured_seconds": row.measured,
                "without_seconds": row.before,
                "with_seconds": row.after,
                "chose_constants": row.chose,
            }
            for row in found.rows
        ],
        "median_error": {
            "judged_without": found.error(after=False),
            "judged_with": found.error(after=True),
            "chosen_with": found.error(after=True, judged=False),
        },
        "left_out": list(found.left_out),
    }


def fit_report(found: Fit) -> RenderableType:
    """The same for a terminal."""
    constants = Table(box=None, pad_edge=False, show_header=False)
    for name, value in found.calibration.constants.items():
        constants.add_row(name, f"{value:.4g}", Text(UNITS[name], style="dim"))
    rows = Table(box=None, pad_edge=False, header_style="dim")
    rows.add_column("step", overflow="fold")
    for name in ("measured", "without", "with"):
        rows.add_column(name, justify="right", no_wrap=True)
    rows.add_column("", no_wrap=True)
    for row in found.rows:
        cells = [f"{1000 * row.measured:,.0f} ms", *(f"{100 * (s / row.measured - 1):+.1f} %" for s in (row.before, row.after))]
        rows.add_row(row.label, *cells, "chose" if row.chose else "judges")
    parts: list[RenderableType] = [Text(f"Constants of {found.calibration.gpu}", style="bold"), constants, Text(), rows, Text()]
    before, after = found.error(after=False), found.error(after=True)
    if before is not None and after is not None:
        parts.append(Text(f"rows that judge: median error {100 * before:.1f} % without, {100 * after:.1f} % with"))
    parts += [Text(f"left out: {line}", style="dim") for line in found.left_out]
    return Group(*parts)
