"""Measured steps as `plan profile --out` and the GPU campaign write them, read back as requests of the planner."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tuneplan.hardware_profiles.errors import ProfileError
from tuneplan.hardware_profiles.reading import read_text
from tuneplan.planner.errors import InputError, TuneplanError
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.request import Request, check_settings
from tuneplan.planner.training.optimizers import find as find_optimizer
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding

_SETTINGS = ("micro_batch_size", "seq_len", "dtype", "precision", "attention", "loss", "gradient_checkpointing", "padded")
_MORE = ("keep_outputs", "use_cache", "max_grad_norm")


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measured step.

    Attributes:
        label: of the configuration, in one line.
        request: the planner's request for it, without a GPU.
        step_seconds: the median step; None where none was timed.
        reserved_bytes: most that the allocator held; None on a CPU.
        device_bytes: of the process or the card; None on a CPU.
        origin: where and when.
    """

    label: str
    request: Request
    step_seconds: float | None
    reserved_bytes: int | None
    device_bytes: int | None
    origin: Mapping[str, Any]


def read_measurements(paths: list[str]) -> tuple[list[Measurement], list[str]]:
    """Measured steps of result files, and what was left out, a line each.

    Args:
        paths: JSON documents of `plan profile`, or lines of JSON of the campaign.

    Raises:
        InputError: a file cannot be read or holds no measured step.
    """
    found: list[Measurement] = []
    left_out: list[str] = []
    for path in paths:
        rows = list(_documents(path))
        if not rows:
            raise InputError(f"{path} holds no measured step; give the file of plan profile --out, or rows.jsonl of the campaign")
        for document, origin in rows:
            row = _measurement_or_why(document, origin)
            if isinstance(row, Measurement):
                found.append(row)
            else:
                left_out.append(f"{os.path.basename(path)}: {row}"[:200])
    return found, left_out


def _measurement_or_why(document: dict[str, Any], origin: Mapping[str, Any]) -> Measurement | str:
    """The measurement, or in words why the planner cannot use it."""
    try:
        return _measurement(document, origin)
    except (TuneplanError, KeyError, TypeError, AttributeError) as error:
        asked = document.get("request")
        return f"{asked.get('model') if isinstance(asked, dict) else 'a row'}: {error}"


def _documents(path: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Measured documents that ended well, with their provenance."""
    try:
        text = read_text(path)
    except ProfileError as error:
        raise InputError(str(error)) from None
    try:
        values = [json.loads(text)]
    except ValueError:
        values = [_line(line, path, number) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    for value in values:
        if not isinstance(value, dict):
            raise InputError(f"{path} is not a result of plan profile or of the campaign; give one of these")
        document = value.get("measured", value)
        if isinstance(document, dict) and document.get("source") == "measured" and not document.get("failure"):
            origin = value.get("provenance")
            yield document, origin if isinstance(origin, dict) else {}


def _line(line: str, path: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise InputError(f"{path} line {number} is not JSON: {error}; remove the line or give another file") from None


def _measurement(document: dict[str, Any], origin: Mapping[str, Any]) -> Measurement:
    asked, peak = document["request"], document["peak"]
    if not isinstance(asked["method_in_full"], str):
        raise InputError("a PEFT config of one's own is not read back")
    settings = Settings(**{name: asked[name] for name in (*_SETTINGS, *_MORE) if name in asked})
    check_settings(settings)
    request = Request(
        spec=read_spec(*load(asked["model"])),
        method=parse(asked["method_in_full"]),
        settings=settings,
        optimizer=find_optimizer(asked["optimizer"]),
        sharding=Sharding(asked["data_parallel"], asked["zero_stage"]),
        gradient_accumulation_steps=asked["gradient_accumulation_steps"],
    )
    s = settings
    label = (
        f"{asked['model']} {asked['method']} {s.micro_batch_size} x {s.seq_len} {s.dtype} {s.precision} {s.attention} {s.loss} "
        f"{request.optimizer.name} checkpointing {s.gradient_checkpointing} x{request.gradient_accumulation_steps} "
        f"{request.sharding.label}"
    )
    return Measurement(
        label, request, document["step_seconds"], peak.get("reserved_bytes"), peak.get("device_bytes"), dict(origin)
    )
