"""Memory snapshots in the format of `torch.cuda.memory._dump_snapshot`: written from a trace, read from a real run.

The format is a pickle of plain lists, dicts, strings and numbers (torch 2.13 torch/cuda/memory.py); https://pytorch.org/memory_viz
draws it. A file is read with an unpickler that knows no class, so that nothing in it can run.
"""

import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph.tensor import CATEGORIES
from tuneplan.profiling.replay import Reserved

LARGEST_FILE_BYTES = 2**31
_BIRTH, _DEATH = "alloc", "free_completed"
_ACTIVE = ("active_allocated", "active_pending_free", "active_awaiting_free")


@dataclass(frozen=True, slots=True)
class Measured:
    """A real run's live bytes after each of its events, and the highest of them."""

    live_bytes: Sequence[int]

    @property
    def peak_bytes(self) -> int:
        """Most live bytes."""
        return max(self.live_bytes, default=0)


def snapshot(reserved: Reserved) -> dict[str, Any]:
    """A replayed trace as a snapshot: one device, one stream; every event has its module, its line and its category."""
    events: list[dict[str, Any]] = []
    for index, (action, allocation, address, size) in enumerate(reserved.events):
        frames: list[dict[str, Any]] = []
        category = "workspace"
        if allocation is not None:
            code, line = allocation.site
            name = f"{allocation.op} in {allocation.module or allocation.phase}"
            frames = [{"name": name, "filename": code.co_filename if code else "", "line": line}]
            category = CATEGORIES[allocation.category]
        event = {"addr": address, "size": size, "stream": 0, "time_us": index, "frames": frames, "category": category}
        if action == "alloc":
            events.append({"action": _BIRTH, **event})
        else:
            events.append({"action": "free_requested", **event})
            events.append({"action": _DEATH, **event})
    return {"segments": [], "device_traces": [events], "allocator_settings": {}, "external_annotations": []}


def read(path: Path) -> Measured:
    """Live bytes over a real snapshot's history.

    Raises:
        InputError: the file cannot be read, holds anything but plain data, or has no history.
    """
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise InputError(f"{path} is larger than 2 GiB; record a shorter history (max_entries)")
        content = _Plain(io.BytesIO(path.read_bytes())).load()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; give a file of _dump_snapshot") from error
    except InputError:
        raise
    except Exception as error:  # whatever a broken pickle raises
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path} is not a memory snapshot ({reason}); write one with torch.cuda.memory._dump_snapshot"
        ) from error
    try:
        history = max(content["device_traces"], key=len)
        changes = [_change(event) for event in history]
        segments = content["segments"]
        held = sum(b["size"] for s in segments for b in s["blocks"] if b["state"] in _ACTIVE)
        first = max(held - sum(changes), 0)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} has no history of allocations; call torch.cuda.memory._record_memory_history() first"
        ) from error
    if not history:
        raise InputError(f"{path} has an empty history; call torch.cuda.memory._record_memory_history() before the step")
    live, total = [], first
    for change in changes:
        total += change
        live.append(total)
    return Measured(live)


def _change(event: Mapping[str, Any]) -> int:
    size = int(event["size"])
    return {_BIRTH: size, _DEATH: -size}.get(event["action"], 0)


class _Plain(pickle.Unpickler):
    """Knows no class: only what pickle itself can build."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Refuse. Raises InputError."""
        raise InputError(
            f"the snapshot asks for {module_name}.{global_name}, which a snapshot of torch never does; it is not read"
        )
