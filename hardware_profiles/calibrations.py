"""Constants of a card that were fitted to measurements on it: reading and writing `calibration/<gpu>.toml`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tuneplan.hardware_profiles.errors import ProfileError

if TYPE_CHECKING:
    from tuneplan.hardware_profiles.kernel_speeds import KernelSpeeds

FOLDER = Path(__file__).parent / "calibration"
UNITS = {
    "matmul_share": "share of the dense peak rate that matrix products reach",
    "attention_share": "share of the dense peak rate that fused attention kernels reach",
    "memory_share": "share of the peak bandwidth that kernels bound by memory reach",
    "dequantize_share": "share of the peak bandwidth that 4-bit dequantization reaches",
    "matmul_start_seconds": "seconds that every matrix product takes beside its FLOPs",
    "kernel_seconds": "device seconds between two dependent kernels",
    "host_forward_seconds": "host seconds for a kernel started from Python",
    "host_backward_seconds": "host seconds for a kernel started from the autograd engine",
    "runtime_bytes": "device bytes of one process outside the caching allocator",
}
"""What a calibration may hold; a constant that it lacks stays the one of the planner."""

_LIMITS = {"_share": (0.0, 1.2), "_seconds": (0.0, 1e-2), "_bytes": (0.0, 2**36)}


@dataclass(frozen=True, slots=True)
class Calibration:
    """Constants of one card.

    Attributes:
        gpu: its id.
        constants: by the names of UNITS.
        fitted: labels of the rows that each constant was fitted to.
        measured: where and when they were measured: device, driver, libraries, date, commit.
        kernels: speeds of single kernels, or None where they were not measured.
    """

    gpu: str
    constants: Mapping[str, float] = field(hash=False)
    fitted: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    measured: Mapping[str, str] = field(default_factory=dict, hash=False)
    kernels: "KernelSpeeds | None" = None

    def value(self, name: str, otherwise: float) -> float:
        """A constant, or the planner's own where it was not fitted."""
        return self.constants.get(name, otherwise)


def read_calibration(path: str | Path) -> Calibration:
    """A calibration file. Raises ProfileError, naming file and key, where it cannot be used."""
    from tuneplan.hardware_profiles.kernel_speeds import SECTION, read_kernels
    from tuneplan.hardware_profiles.reading import read_toml

    table = read_toml(path)
    unknown = sorted(set(table) - {"gpu", "measured", SECTION, *UNITS})
    if unknown:
        known = ", ".join(UNITS)
        raise ProfileError(
            f"Cannot use {path}: the key {unknown[0]!r:.60} is not known. Write gpu, measured, {SECTION} and some of {known}."
        )
    gpu, measured = table.get("gpu"), table.get("measured", {})
    if not isinstance(gpu, str) or not isinstance(measured, dict):
        raise ProfileError(f"Cannot use {path}: it must name its gpu and say in [measured] where its figures are from.")
    constants: dict[str, float] = {}
    fitted: dict[str, tuple[str, ...]] = {}
    for name in UNITS:
        if name not in table:
            continue
        entry = table[name]
        value = entry.get("value") if isinstance(entry, dict) else None
        rows = entry.get("fitted_to") if isinstance(entry, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not isinstance(rows, list) or not rows:
            raise ProfileError(f"Cannot use {path}: {name} must have a number as value and the rows that it was fitted_to.")
        least, most = next(limits for ending, limits in _LIMITS.items() if name.endswith(ending))
        if not least < value <= most:
            raise ProfileError(f"Cannot use {path}: {name} is {value}, which is not within {least:g} and {most:g}.")
        constants[name] = value
        fitted[name] = tuple(str(row) for row in rows)
    kernels = read_kernels(table[SECTION], path) if SECTION in table else None
    return Calibration(gpu, constants, fitted, {str(key): str(value) for key, value in measured.items()}, kernels)


@cache
def bundled(gpu: str) -> Calibration | None:
    """The calibration that comes with the package for a GPU id, or None. Raises ProfileError for a broken file."""
    path = FOLDER / f"{gpu}.toml"
    return read_calibration(path) if path.exists() else None


def to_toml(calibration: Calibration) -> str:
    """The text of a calibration file; `read_calibration` gives the same back."""
    lines = [f"gpu = {_text(calibration.gpu)}", ""]
    for name, unit in UNITS.items():
        if name in calibration.constants:
            value = calibration.constants[name]
            shown = str(int(value)) if name.endswith("_bytes") else f"{value:.6g}"
            rows = ", ".join(_text(row) for row in calibration.fitted[name])
            lines += [f"[{name}] # {unit}", f"value = {shown}", f"fitted_to = [{rows}]", ""]
    lines += ["[measured]", *[f"{key} = {_text(value)}" for key, value in calibration.measured.items()]]
    if calibration.kernels:
        from tuneplan.hardware_profiles.kernel_speeds import kernels_toml

        lines += ["", *kernels_toml(calibration.kernels)[:-1]]
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    """A TOML basic string."""
    import json

    return json.dumps(value)
