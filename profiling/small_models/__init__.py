"""Tiny models for holding the ledger against the real code: `<model_type>.json`, or `<model_type>-<variant>.json`, one a file.

A file is an object with:

    config      contents of a config.json with the proportions of a real model, small enough to trace in half a second
    task        a name of subject.TASKS, where it is not what the config says
    methods     {method: written out}: what stands for a method of the matrix where PEFT does not run its defaults on this model
    refuses     {method: reason}: methods that the real code does not run on this model; "METHOD checkpointed" for one that it
                does not run under gradient checkpointing alone
    not_modelled {method: reason}: methods that the real code runs on this model and the planner refuses
    tolerances  {method: {"percent": x, "reason": why}}: where the peak may differ by more than validation's usual 0.1 %
    points      [[batch, length], ...] instead of POINTS
    image_size  [height, width] of images, where their size is free
    device      "cpu" for code that asks for values, which the meta device does not have
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from tuneplan.planner.errors import UnknownNameError

FOLDER = Path(__file__).parent
POINTS = ((2, 256), (1, 64), (3, 100))
"""(batch, length) of the three steps that every cell of the matrix is run at."""


@dataclass(frozen=True, slots=True)
class SmallModel:
    """One file of this folder; the module's docstring says what its attributes are."""

    name: str
    config: Mapping[str, Any]
    task: str = ""
    methods: Mapping[str, str] = field(default_factory=dict)
    refuses: Mapping[str, str] = field(default_factory=dict)
    not_modelled: Mapping[str, str] = field(default_factory=dict)
    tolerances: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    points: tuple[tuple[int, int], ...] = POINTS
    image_size: tuple[int, int] | None = None
    device: str = "meta"

    def written(self, method: str) -> str:
        """A method of the matrix as it is run on this model."""
        return self.methods.get(method, method)

    @property
    def model_type(self) -> str:
        """The config's."""
        return str(self.config["model_type"])


def names() -> tuple[str, ...]:
    """Every small model, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def load(name: str) -> SmallModel:
    """The small model of a name. Raises UnknownNameError."""
    model = _read(name)
    return replace(model, config=copy.deepcopy(dict(model.config)))


@cache
def _read(name: str) -> SmallModel:
    if name not in names():
        raise UnknownNameError("small model", name, names(), str(FOLDER.name))
    content = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    points = tuple((int(batch), int(length)) for batch, length in content.pop("points", POINTS))
    size = content.pop("image_size", None)
    return SmallModel(name, points=points, image_size=tuple(size) if size else None, **content)


def config(name: str, **changes: Any) -> dict[str, Any]:
    """The config of a small model with other values. Raises UnknownNameError."""
    return {**load(name).config, **changes}
