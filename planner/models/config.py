"""Reading a Hugging Face config.json: safely, fast, and with errors that say what to do.

Only the standard library's json is used. Nothing in the file is ever executed: `auto_map` and other
pointers to custom code are ignored.
"""

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from tuneplan.planner.errors import InputError

MAXIMUM_FILE_BYTES = 2**20
MAXIMUM_INTEGER = 2**24
CONFIG_NAME = "config.json"


def read_config_file(path: str | os.PathLike[str], name: str = CONFIG_NAME) -> dict[str, Any]:
    """The top-level object of a config.json, or of another small JSON file that a model's folder has.

    Args:
        path: the file, or a folder with one (as `huggingface-cli download` leaves it).
        name: of the file in a folder, and in error messages.

    Raises:
        InputError: the file cannot be read, is not a regular file, is larger than 1 MiB, or is not one JSON object.
    """
    given = shown_path(path)
    try:
        data = _read_regular_file(path, given, name)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"Cannot read {given}: {reason}. Check the path and its permissions.") from error
    if len(data) > MAXIMUM_FILE_BYTES:
        raise InputError(f"{given} is larger than 1 MiB, but a {name} is a few KB. Give the {name}.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{given} is not UTF-8 text (byte {error.start}). Give a {name}, not a weights file.") from error
    return _parse_object(text, given, name)


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path as error messages quote it: on one line, in ASCII, at most about 200 characters."""
    quoted = ascii(os.fspath(path))
    return quoted if len(quoted) <= 200 else f"{quoted[:98]}...{quoted[-98:]}"


def _read_regular_file(path: str | os.PathLike[str], given: str, name: str) -> bytes:
    """At most one byte more than the limit; a FIFO or device is refused before it is opened, since that could hang."""
    full_path = os.path.expanduser(path)
    is_folder = os.path.isdir(full_path)
    if is_folder:
        full_path = os.path.join(full_path, name)
    try:
        mode = os.stat(full_path).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"The folder {given} has no {name}. Give the folder of a downloaded model, or the file itself."
            if is_folder
            else f"{given} does not exist. Give a downloaded {name}, or a name that plan models lists."
        ) from error
    if not stat.S_ISREG(mode):
        raise InputError(f"{given} is not a regular file. Give the path of a downloaded {name}.")
    with open(full_path, "rb") as file:
        return file.read(MAXIMUM_FILE_BYTES + 1)


def _parse_object(text: str, given: str, wanted: str) -> dict[str, Any]:
    def constant(name: str) -> float:
        if name == "Infinity":  # Nemotron-H's time_step_limit has it, and Python's json writes it
            return float("inf")
        raise InputError(f"{given} holds {name}, which is not a JSON number. Replace it with a finite number or null.")

    if not text.strip():
        raise InputError(f"{given} is empty. Download the {wanted} again.")
    try:
        content = json.loads(text, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{given} is not valid JSON: {error.msg} at line {error.lineno} column {error.colno}. "
            "Correct it, or download it again if it is cut off."
        ) from error
    except RecursionError as error:
        raise InputError(f"{given} is nested too deeply for a {wanted}. Give the right file.") from error
    except ValueError as error:  # an integer of thousands of digits
        raise InputError(f"{given} holds a number that is too long to be read. Correct it.") from error
    if not isinstance(content, dict):
        raise InputError(f"{given} holds {_shown(content)}, but a {wanted} is one JSON object. Give the right file.")
    return content


@dataclass(frozen=True, slots=True)
class ConfigReader:
    """A config.json's values by key, each checked for its type and its bounds.

    A key whose value is null counts as absent, as in transformers. Each accessor raises InputError, naming the
    file and the key, when the value is missing without a default, of another type, or out of bounds.

    Attributes:
        mapping: the object as read.
        origin: where it came from, such as a path or a hub id; it opens every error message.
        asked: keys that were looked at so far.
    """

    mapping: Mapping[str, Any]
    origin: str
    asked: set[str] = field(default_factory=set, compare=False, repr=False)

    def has(self, key: str) -> bool:
        """Whether the key is there with a value other than null."""
        self.asked.add(key)
        return self.mapping.get(key) is not None

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1, maximum: int = MAXIMUM_INTEGER) -> int:
        """The integer at `key`, from `minimum` to `maximum`; required when there is no default."""
        value = self.optional_integer(key, minimum=minimum, maximum=maximum)
        if value is not None:
            return value
        return self._missing(key) if default is None else default

    def optional_integer(self, key: str, *, minimum: int = 1, maximum: int = MAXIMUM_INTEGER) -> int | None:
        """The integer at `key`, from `minimum` to `maximum`, or None when it is absent or null."""
        self.asked.add(key)
        value = self.mapping.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self._wrong_type(key, value, "an integer")
        self._check_bounds(key, value, minimum, maximum)
        return value

    def number(self, key: str, default: float | None = None, *, minimum: float = 0.0, maximum: float = 1e12) -> float:
        """The finite number at `key`, from `minimum` to `maximum`; required when there is no default."""
        self.asked.add(key)
        value = self.mapping.get(key)
        if value is None:
            return self._missing(key) if default is None else default
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._wrong_type(key, value, "a number")
        self._check_bounds(key, value, minimum, maximum)
        return float(value)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """The true or false at `key`; required when there is no default."""
        self.asked.add(key)
        value = self.mapping.get(key)
        if value is None:
            return self._missing(key) if default is None else default
        if not isinstance(value, bool):
            self._wrong_type(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """The string at `key`; required when there is no default."""
        self.asked.add(key)
        value = self.mapping.get(key)
        if value is None:
            return self._missing(key) if default is None else default
        if not isinstance(value, str):
            self._wrong_type(key, value, "a string")
        return value

    def section(self, key: str) -> "ConfigReader":
        """The object at `key`, such as `text_config`, with its own reader."""
        self.asked.add(key)
        value = self.mapping.get(key)
        if value is None:
            self._missing(key)
        if not isinstance(value, Mapping):
            self._wrong_type(key, value, "an object")
        return ConfigReader(value, f"{self.origin}, {key}")

    def _missing(self, key: str) -> NoReturn:
        raise InputError(f"{self.origin}: the key {key!r} is missing. Use the config.json published with the model.")

    def _wrong_type(self, key: str, value: object, wanted: str) -> NoReturn:
        raise InputError(f"{self.origin}: {key!r} is {_shown(value)}, but must be {wanted}. Correct the file.")

    def _check_bounds(self, key: str, value: float, minimum: float, maximum: float) -> None:
        if not minimum <= value <= maximum:
            raise InputError(
                f"{self.origin}: {key!r} is {_shown(value)}, but must be from {minimum} to {maximum}. Correct the file."
            )


def _shown(value: object) -> str:
    """A JSON value as an error message shows it: on one line, and short."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    spelled = json.dumps(value)
    return spelled if len(spelled) <= 60 else spelled[:57] + "..."
