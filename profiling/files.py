"""Files that are written whole or not at all."""

import os
import tempfile
from pathlib import Path

from tuneplan.planner.errors import InputError


def check_writable(path: Path) -> None:
    """Raise InputError, before any work is done, for a path that cannot be written."""
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


def write_atomic(path: Path, content: bytes) -> None:
    """Write beside the file and rename. Raises InputError where the file cannot be written."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(name, 0o666 & ~mask)
            os.replace(name, path)
        except OSError:
            os.unlink(name)
            raise
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}; choose another file") from error
