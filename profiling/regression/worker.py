"""The process of an entry point: import it, build, run steps under the tracker, write the reading as JSON."""

import gc
import importlib.util
import json
import logging
import random
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from tuneplan.planner.errors import InputError
from tuneplan.profiling.regression.reading import Reading
from tuneplan.profiling.regression.tracked import ProjectTracker, in_project, read, short_path
from tuneplan.profiling.regression.watch import watch

STEPS = 3
"""The first makes the optimizer's states, the second is steady, the third shows what every step piles up."""
_EXPECTED = "return (model, batch, optimizer), or a dict of these with a function `step(model, batch, optimizer)`"


@dataclass(frozen=True, slots=True)
class Made:
    """What an entry point built."""

    model: nn.Module
    batch: Any
    optimizer: Any
    step: Callable[[Any, Any, Any], object]


def plain_step(model: Any, batch: Mapping[str, Any], optimizer: Any) -> None:
    """The step of an entry point that brings none: forward, backward, update."""
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def run(entry_point: str, device: str, root: Path) -> Reading:
    """Build and step. Raises InputError for what the user can put right; the user's own exceptions pass."""
    if device == "gpu" and not torch.cuda.is_available():
        raise InputError(f"{entry_point} is to run on a GPU, and torch sees none here; use device = 'meta' or 'cpu'")
    where = "cuda" if device == "gpu" else device
    function = find(entry_point, root)
    _seed()
    with torch.device(where):
        made = _made(function(), entry_point)
        if device == "meta":
            _as_on_a_card()
            _foreach(made.optimizer)
        found = {parameter.device.type for parameter in made.model.parameters()}
        if found != {where}:
            raise InputError(
                f"{entry_point} built its model on {', '.join(sorted(found)) or 'no device'}, not on {where}; build it without "
                "naming a device, or set device of the case"
            )
        starts = []
        with watch(root, where, [made.model], [made.optimizer], made.batch) as tracker:
            for _ in range(STEPS):
                starts.append(len(tracker.log))
                _step(made, tracker)
                if device == "meta":
                    _as_on_a_card()  # where a step was the first to import transformers
        log = list(tracker.log)
    return read(log, starts[-1], len(log), root, tracker.callers, facts(made), starts[-2])


def _step(made: Made, tracker: ProjectTracker) -> None:
    """One step; cycles are collected between steps and never within one, so that the same code gives the same bytes."""
    gc.collect()
    gc.disable()
    try:
        made.step(made.model, made.batch, made.optimizer)
    finally:
        gc.enable()
    gc.collect()
    tracker.phase = "forward"


def find(entry_point: str, root: Path) -> Callable[[], Any]:
    """The function of `file.py:function` or `module:function`. Raises InputError where there is none."""
    source, _, name = entry_point.rpartition(":")
    if not source or not name.isidentifier():
        raise InputError(f"entry_point {entry_point!r} names no function; write file.py:function or module:function")
    sys.path[:0] = [str(root)]
    module = _file(root / source, entry_point) if source.endswith(".py") else _module(source, entry_point)
    function = getattr(module, name, None)
    if not callable(function):
        names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        close = get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "; check the name"
        raise InputError(f"{source} has no function {name!r}{hint}")
    found: Callable[[], Any] = function
    return found


def _file(path: Path, entry_point: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError(f"entry_point {entry_point!r}: there is no file {path}; it is relative to the file of cases")
    sys.path[:0] = [str(path.parent)]
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _module(name: str, entry_point: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise InputError(f"entry_point {entry_point!r}: there is no module {error.name!r}; check the name") from error


def _made(given: Any, entry_point: str) -> Made:
    if isinstance(given, tuple) and len(given) == 3:
        given = dict(zip(("model", "batch", "optimizer"), given, strict=True))
    if not isinstance(given, Mapping) or not {"model", "batch", "optimizer"} <= set(given):
        raise InputError(f"{entry_point} gave {type(given).__name__}; {_EXPECTED}")
    step = given.get("step", plain_step)
    if not isinstance(given["model"], nn.Module) or not callable(step):
        raise InputError(f"{entry_point} gave a {type(given['model']).__name__} as the model; {_EXPECTED}")
    return Made(given["model"], given["batch"], given["optimizer"], step)


def facts(made: Made) -> dict[str, int | bool | str]:
    """What explains a change of memory, by name."""
    parameters = {id(p): p for p in made.model.parameters()}.values()
    checkpointed = [m for m in made.model.modules() if getattr(m, "gradient_checkpointing", False)]
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in parameters})
    return {
        "gradient_checkpointing": bool(checkpointed),
        "optimizer": type(made.optimizer).__name__,
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "weight_dtypes": ", ".join(kinds),
    }


def _seed() -> None:
    random.seed(0)
    torch.manual_seed(0)


def _as_on_a_card() -> None:
    """The sdpa of transformers allocates what CUDA's kernels would; the meta device has only the slow one.

    A project of plain torch need not have transformers, nor wait for it. An sdpa of the project's own stays. Raises InputError
    for a transformers that cannot be told.
    """
    library = sys.modules.get("transformers")
    if library is None:
        return
    try:
        from transformers import AttentionInterface
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        from tuneplan.profiling import attention
    except ImportError as error:
        version = getattr(library, "__version__", "of this version")
        raise InputError(
            f"transformers {version} cannot be told what attention allocates on a card ({error}); update it, or use device 'cpu'"
        ) from None
    attention.register()
    if AttentionInterface()["sdpa"] is sdpa_attention_forward:
        AttentionInterface.register("sdpa", AttentionInterface()[attention.SDPA])


def _foreach(optimizer: Any) -> None:
    """An optimizer that leaves the choice to torch updates all parameters at once on a card, and one by one elsewhere."""
    for group in getattr(optimizer, "param_groups", []):
        if "foreach" in group and group["foreach"] is None and not group.get("fused"):
            group["foreach"] = True


def _raised(error: BaseException, entry_point: str, root: Path) -> str:
    """What the user's code raised, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if in_project(frame.filename, root)]
    where = f" at {short_path(own[-1].filename, root)}:{own[-1].lineno}" if own else ""
    reason = " ".join(str(error).split())[:300]
    hint = "; on the meta device there are no values: use device = 'cpu' if the step needs them" if "meta" in reason else ""
    return f"{entry_point} raised {type(error).__name__}{where}: {reason or 'no message'}{hint}"


def main() -> None:
    """Read the request, write the answer: a reading, or what went wrong."""
    request = json.loads(sys.argv[1])
    root = Path(request["root"])
    warnings.simplefilter("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        answer = run(request["entry_point"], request["device"], root).to_json()
    except InputError as error:
        answer = {"error": str(error)}
    except BaseException as error:  # whatever the user's code raises, SystemExit too
        answer = {"error": _raised(error, request["entry_point"], root)}
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
