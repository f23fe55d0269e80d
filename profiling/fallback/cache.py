"""Traced programs in the user's cache directory: one file a configuration, keyed by everything that decides the trace.

Nothing here can fail an estimate: a file that is broken, of another version or cannot be written is as good as none.
"""

import gzip
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache as remember
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.profiling.fallback.codec import decode, encode
from tuneplan.profiling.fallback.program import Program
from tuneplan.profiling.files import write_atomic
from tuneplan.profiling.subject import Subject

FORMAT = 2
MOST_FILES = 200
MAXIMUM_BYTES = 256 * 2**20
"""Of a file when it is unpacked."""
UNUSABLE = (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)
"""What a file raises that is not what was written."""
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


def folder() -> Path:
    """Where the platform keeps caches: XDG_CACHE_HOME or ~/.cache, ~/Library/Caches on macOS, LOCALAPPDATA on Windows."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        given = os.environ.get("XDG_CACHE_HOME", "")
        base = given if os.path.isabs(given) else str(Path.home() / ".cache")  # a relative path is to be ignored, says XDG
    return Path(base) / "tuneplan" / "traces"


def key(subject: Subject, steps: int = 2) -> dict[str, Any]:
    """Everything that decides a trace but batch and length, as a JSON object. `steps`: updates that were run."""
    settings = asdict(replace(subject.settings, micro_batch_size=0, seq_len=0))
    return {
        "format": FORMAT,
        "config": dict(subject.config),
        "method": subject.request()["method_in_full"],
        "settings": settings,
        "optimizer": subject.optimizer.name,
        "micro_batches": subject.gradient_accumulation_steps,
        "steps": steps,
        "task": subject.task,
        "versions": versions(),
    }


@remember
def versions() -> dict[str, str]:
    """Versions of the traced libraries, and a digest of the code that traces."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return {**found, "tuneplan": digest.hexdigest()[:16]}


def load(subject: Subject) -> list[Program]:
    """Programs that are kept for a subject; none where there are none or the file is not what was written."""
    try:
        return [decode(program) for program in contents(subject)["programs"]]
    except UNUSABLE:
        return []


def contents(subject: Subject, steps: int = 2) -> dict[str, Any]:
    """The file of a subject, with no programs where there is none or it is not what was written."""
    wanted = _plain(key(subject, steps))
    try:
        with gzip.open(_path(wanted), "rb") as file:
            data = file.read(MAXIMUM_BYTES + 1)
        found = json.loads(data)
        if len(data) > MAXIMUM_BYTES or found["key"] != wanted:
            return {"programs": []}
    except UNUSABLE:
        return {"programs": []}
    content: dict[str, Any] = found
    return content


def path(subject: Subject) -> Path:
    """The file of a subject."""
    return _path(_plain(key(subject)))


def store(subject: Subject, programs: Iterable[Program]) -> str:
    """Keep the programs of a subject; gives where, or "" where they cannot be kept."""
    return keep(subject, [encode(program) for program in programs])


def keep(subject: Subject, programs: Sequence[Mapping[str, Any]], steps: int = 2, refusals: Mapping[int, str] = {}) -> str:
    """As `store`, of programs that are encoded; `refusals`: why there are none, by length."""
    wanted = _plain(key(subject, steps))
    file = _path(wanted)
    text = json.dumps({"key": wanted, "programs": programs, "refusals": list(refusals.items())}, separators=(",", ":"))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, gzip.compress(text.encode(), 5, mtime=0))
        _prune(file.parent)
    except (OSError, InputError):
        return ""
    return str(file)


def _plain(value: Mapping[str, Any]) -> Any:
    """As it reads back from JSON."""
    return json.loads(json.dumps(value, sort_keys=True, default=str))


def _path(wanted: Any) -> Path:
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    return folder() / f"{digest[:40]}.json.gz"


def _prune(where: Path) -> None:
    """The files that were written last stay."""
    files = sorted(where.glob("*.json.gz"), key=lambda file: file.stat().st_mtime)
    for file in files[: max(len(files) - MOST_FILES, 0)]:
        file.unlink(missing_ok=True)
