"""Writing exported files: all or none, and never over what is there already unless that is asked for."""

import os
from collections.abc import Mapping
from pathlib import Path

from tuneplan.planner.errors import InputError

SCRIPT_MODE = 0o755


def write_all(folder: str, files: Mapping[str, str], force: bool = False) -> list[Path]:
    """Write files below a folder, which is made where it is missing.

    Args:
        folder: where they go.
        files: contents by name, which may have folders in it.
        force: write over files that exist.

    Returns:
        The paths that were written.

    Raises:
        InputError: one of them exists, or cannot be written.
    """
    if not folder.strip():
        raise InputError("--out is empty; name a folder, such as run")
    root = Path(folder).expanduser()
    paths = {name: root / name for name in files}
    try:
        there = [name for name, path in paths.items() if path.exists() or path.is_symlink()]
        if there and not force:
            raise InputError(f"{folder} has {', '.join(there)} already; choose another --out, or --force to write over them")
        for name, path in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[name], encoding="utf-8")
            if name.endswith(".sh"):
                os.chmod(path, SCRIPT_MODE)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a path"
        raise InputError(f"{folder!r} cannot be written: {reason}; choose another --out") from None
    return list(paths.values())
