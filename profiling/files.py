"""Files that are written whole or not at all."""

import os
import tempfile
from pathlib import Path

from tuneplan.planner.errors import InputError


def write_atomic(path: Path, content: bytes) -> None:
    """Write beside the file and rename. Raises InputError where the file cannot be written."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(name, 0o666 & ~mask)
            os.replace(name, path)
        except OSError:
            os.unlink(name)
            raise
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}; choose another file") from error
