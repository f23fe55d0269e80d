"""The `[kernels]` section of a calibration: how fast a card runs each implementation of a kernel, fitted to result files.

    [kernels.dequantize_4bit.tuneplan]
    launch_seconds = 3.1e-06        # a of `a + b * weights`
    seconds_per_weight = 6.2e-13    # b
    residual_percent = 2.4          # the largest gap of a row to the fit
    rows = ["4096x4096", "11008x4096"]

Beside it `[kernels.gemm]` (rate of bf16 products over their tokens), `[kernels.copy]`, `[kernels.launch]`,
`[kernels.lora.NAME]` and `[kernels.measured]`. `tuneplan.kernels.bench.fit` writes the section from rows of
`kernels/results/<gpu>/`, nothing else does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tuneplan.hardware_profiles.errors import ProfileError

IMPLEMENTATIONS = {
    "bitsandbytes": "bitsandbytes' own kernels; for LoRA, PEFT's layers over them",
    "unsloth": "Unsloth's kernels, called as an installed package",
    "torchao": "torchao's NF4 tensor",
    "tuneplan": "the kernels of this package",
    "torch_compile": "plain torch ops, compiled",
}
"""Names of implementations, the same in every table."""
SECTION = "kernels"
_TABLES = ("dequantize_4bit", "lora", "gemm", "copy", "launch", "measured")
_FIT = ("launch_seconds", "seconds_per_weight", "residual_percent")
_TRAFFIC = ("bytes_per_token_output", "bytes_per_token_input")
_MOST = 1e300
_MOST_SECONDS = 1.0
_MOST_RATE = 1e18
_MOST_BYTES = 1e4


@dataclass(frozen=True, slots=True)
class DequantizeFit:
    """Device seconds of one weight's dequantization: `launch_seconds + seconds_per_weight * weights`.

    Args:
        launch_seconds: what the smallest weight takes.
        seconds_per_weight: the slope.
        residual_percent: the largest gap of a row to the fit, as a share of the row.
        rows: the results that it was fitted to.
    """

    launch_seconds: float
    seconds_per_weight: float
    residual_percent: float
    rows: tuple[str, ...]

    def seconds(self, weights: Any) -> Any:
        """Of a number of weights, or an array of them."""
        return self.launch_seconds + self.seconds_per_weight * weights


@dataclass(frozen=True, slots=True)
class LoraTraffic:
    """Bytes that an adapter's branch moves beside its products, forward and backward of one linear layer together.

    Args:
        bytes_per_token_output: for each token and output feature.
        bytes_per_token_input: for each token and input feature.
    """

    bytes_per_token_output: float
    bytes_per_token_input: float


@dataclass(frozen=True, slots=True)
class GemmCurve:
    """Rate of bf16 products `[tokens, k] @ [k, n]` of a large layer over their number of tokens.

    Args:
        tokens: rising.
        flops_per_second: the rate at each; a multiply-add is 2 FLOPs.
    """

    tokens: tuple[int, ...]
    flops_per_second: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class KernelSpeeds:
    """What was measured of kernels on one card.

    Args:
        dequantize_4bit: by implementation.
        lora: by implementation.
        gemm: rates of products, or None.
        copy_bytes_per_second: bandwidth of a copy, bytes read and written counted, or None.
        launch_seconds: device seconds from one empty kernel's start to the next in a graph, or None.
        measured: where and when: device, driver, libraries, date, commit, the result files.
    """

    dequantize_4bit: Mapping[str, DequantizeFit] = field(default_factory=dict, hash=False)
    lora: Mapping[str, LoraTraffic] = field(default_factory=dict, hash=False)
    gemm: GemmCurve | None = None
    copy_bytes_per_second: float | None = None
    launch_seconds: float | None = None
    measured: Mapping[str, str] = field(default_factory=dict, hash=False)


def read_kernels(table: Any, path: object) -> KernelSpeeds:
    """The section of a calibration file. Raises ProfileError, naming file and key, where it cannot be used."""
    reader = _Reader(str(path))
    table = reader.table(table, SECTION, _TABLES)
    fits = {
        name: DequantizeFit(
            reader.number(entry, where, "launch_seconds", 0.0, _MOST_SECONDS),
            reader.number(entry, where, "seconds_per_weight", 0.0, _MOST_SECONDS, above=True),
            reader.number(entry, where, "residual_percent", 0.0, _MOST),
            tuple(map(str, reader.rows(entry, where))),
        )
        for name, where, entry in reader.implementations(table, "dequantize_4bit", (*_FIT, "rows"))
    }
    traffic = {
        name: LoraTraffic(*(reader.number(entry, where, key, 0.0, _MOST_BYTES) for key in _TRAFFIC))
        for name, where, entry in reader.implementations(table, "lora", _TRAFFIC)
    }
    measured = reader.table(table.get("measured", {}), f"{SECTION}.measured", None)
    if (fits or traffic) and not measured:
        raise reader.fault(f"{SECTION}.measured", "must say on what and from which files the figures are")
    return KernelSpeeds(
        fits,
        traffic,
        reader.curve(table),
        reader.single(table, "copy", "bytes_per_second", _MOST_RATE),
        reader.single(table, "launch", "seconds", _MOST_SECONDS),
        {key: str(value) for key, value in measured.items()},
    )


class _Reader:
    """Checks of one file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def fault(self, where: str, what: str) -> ProfileError:
        return ProfileError(f"Cannot use {self.path}: {where} {what}.")

    def table(self, found: Any, where: str, known: tuple[str, ...] | None) -> dict[str, Any]:
        if not isinstance(found, dict):
            raise self.fault(where, "must be a table")
        unknown = sorted(set(found) - set(known)) if known is not None else []
        if unknown:
            raise self.fault(f"{where}.{unknown[0]:.60}", f"is not known; write some of {', '.join(known or ())}")
        return found

    def implementations(
        self, table: Mapping[str, Any], name: str, keys: tuple[str, ...]
    ) -> list[tuple[str, str, dict[str, Any]]]:
        """Name, place and table of each implementation."""
        entries = self.table(table.get(name, {}), f"{SECTION}.{name}", tuple(IMPLEMENTATIONS))
        places = [(key, f"{SECTION}.{name}.{key}", entry) for key, entry in entries.items()]
        return [(key, where, self.table(entry, where, keys)) for key, where, entry in places]

    def number(self, entry: Mapping[str, Any], where: str, key: str, least: float, most: float, above: bool = False) -> float:
        value = entry.get(key)
        # a whole number may be too large for a float
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < _MOST:
            raise self.fault(f"{where}.{key}", "must be a finite number")
        if not least <= value <= most or (above and value == least):
            raise self.fault(f"{where}.{key}", f"is {value:g}, which is not within {least:g} and {most:g}")
        return float(value)

    def rows(self, entry: Mapping[str, Any], where: str) -> list[Any]:
        rows = entry.get("rows")
        if not isinstance(rows, list) or not rows:
            raise self.fault(f"{where}.rows", "must list the results that it was fitted to")
        return rows

    def single(self, table: Mapping[str, Any], name: str, key: str, most: float) -> float | None:
        if name not in table:
            return None
        where = f"{SECTION}.{name}"
        return self.number(self.table(table[name], where, (key,)), where, key, 0.0, most, above=True)

    def curve(self, table: Mapping[str, Any]) -> GemmCurve | None:
        if "gemm" not in table:
            return None
        where = f"{SECTION}.gemm"
        entry = self.table(table["gemm"], where, ("tokens", "flops_per_second"))
        tokens, rates = entry.get("tokens"), entry.get("flops_per_second")
        if not isinstance(tokens, list) or not isinstance(rates, list) or len(tokens) != len(rates) or not tokens:
            raise self.fault(where, "must have as many tokens as flops_per_second, and one at least")
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in tokens) or tokens != sorted(set(tokens)):
            raise self.fault(f"{where}.tokens", "must be whole numbers that rise")
        found = (self.number({"rate": rate}, where, "rate", 0.0, _MOST_RATE, above=True) for rate in rates)
        return GemmCurve(tuple(tokens), tuple(found))


def kernels_toml(speeds: KernelSpeeds) -> list[str]:
    """The lines of the section; `read_kernels` gives the same back, to seven digits."""
    lines: list[str] = []
    for name, fit in speeds.dequantize_4bit.items():
        values = [f"{key} = {getattr(fit, key):.7g}" for key in _FIT]
        lines += [f"[{SECTION}.dequantize_4bit.{name}]", *values, f"rows = {_list(map(_text, fit.rows))}", ""]
    for name, traffic in speeds.lora.items():
        lines += [f"[{SECTION}.lora.{name}]", *(f"{key} = {getattr(traffic, key):.7g}" for key in _TRAFFIC), ""]
    if speeds.gemm:
        rates = _list(f"{rate:.7g}" for rate in speeds.gemm.flops_per_second)
        lines += [f"[{SECTION}.gemm]", f"tokens = {_list(map(str, speeds.gemm.tokens))}", f"flops_per_second = {rates}", ""]
    for name, key, value in (
        ("copy", "bytes_per_second", speeds.copy_bytes_per_second),
        ("launch", "seconds", speeds.launch_seconds),
    ):
        if value is not None:
            lines += [f"[{SECTION}.{name}]", f"{key} = {value:.7g}", ""]
    if lines and speeds.measured:
        lines += [f"[{SECTION}.measured]", *(f"{key} = {_text(value)}" for key, value in speeds.measured.items()), ""]
    return lines


def _list(items: Any) -> str:
    return f"[{', '.join(items)}]"


def _text(value: str) -> str:
    """A TOML basic string."""
    import json

    return json.dumps(value)
