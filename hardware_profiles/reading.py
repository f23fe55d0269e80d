"""Reading a file that may be anything: every way it can fail becomes one line that names the file."""

import stat
import sys
from pathlib import Path
from typing import Any

from tuneplan.hardware_profiles.errors import ProfileError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LARGEST_FILE_BYTES = 8 * 2**20
LARGEST_TOML_BYTES = 64 * 2**10
"""A file of one card takes 3 kB; reading TOML can take time in the square of its length."""


def read_text(path: str | Path, most_bytes: int = LARGEST_FILE_BYTES) -> str:
    """The text of a regular UTF-8 file of at most `most_bytes`, without a byte order mark.

    Raises:
        ProfileError: missing, unreadable, a directory or a device, too large, or not UTF-8.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ProfileError(f"Cannot read {path}: it is not a regular file. Give the path of a file.")
        if status.st_size > most_bytes:
            raise ProfileError(
                f"Cannot use {path}: {status.st_size} bytes, more than the {most_bytes} that are read. Split the file."
            )
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ProfileError(f"Cannot read {str(path)!r}: {reason}. Check the path and its permissions.") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProfileError(f"Cannot use {path}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from None


def read_toml(path: str | Path) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        ProfileError: as `read_text`, or the text is not TOML.
    """
    text = read_text(path, LARGEST_TOML_BYTES)
    try:
        table: dict[str, Any] = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ProfileError(f"Cannot use {path}: it is not TOML ({error}). Correct the file.") from None
    return table
