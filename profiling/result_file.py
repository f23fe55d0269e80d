"""A result file that is either whole or not there: checked before the work, written in one move after it."""

import os
import tempfile
from pathlib import Path

from tuneplan.planner.errors import InputError


def check_writable(path: Path) -> None:
    """Raise InputError, before anything is measured, for a path that cannot be written."""
    if path.is_dir():
        raise InputError(f"--out {path} is a folder; give the name of a file in it")
    if not path.parent.is_dir():
        raise InputError(f"--out {path}: the folder {path.parent} does not exist; make it first")
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(f"--out {path} cannot be written: {error.strerror or error}; choose another place") from error
    os.close(handle)
    os.unlink(name)


def write_whole(path: Path, text: str) -> None:
    """Write a file under another name, and rename it when all of it is on the disk. Raises InputError."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except OSError:
            os.unlink(name)
            raise
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}; choose another place") from error
