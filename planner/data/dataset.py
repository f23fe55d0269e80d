"""Token counts of a data set's rows: JSON lines or Parquet, read row by row in bounded memory.

A row says how long it is by itself (`length`, `input_ids`), or holds text, whose tokens a local tokenizer counts, or a stated
number of characters a token. Not counted: what a chat template puts between the turns.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from tuneplan.planner.data.lengths import LONGEST, Lengths, of_counts
from tuneplan.planner.errors import InputError
from tuneplan.planner.models.config import shown_path

CHARS_PER_TOKEN = 4.0
LONGEST_LINE_BYTES = 64 * 2**20
NUMBERS = ("length", "num_tokens", "n_tokens", "token_count", "tokens_count")
LISTS = ("input_ids", "tokens", "token_ids")
CHATS = ("messages", "conversations", "conversation")
TEXTS = (
    ("text",),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "input", "output"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("prompt", "chosen"),
    ("content",),
    ("prompt",),
)
Count = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns say how long a row is: "number", "list", "chat" or "text"."""

    kind: str
    names: tuple[str, ...]


def read(path: str, tokenizer: str | None = None, chars_per_token: float | None = None, column: str | None = None) -> Lengths:
    """The lengths of a file's rows.

    Args:
        path: a .jsonl or .parquet file.
        tokenizer: a local tokenizer.json, or a folder with one.
        chars_per_token: of text without a tokenizer; None for CHARS_PER_TOKEN.
        column: the one that decides, instead of the usual names.

    Raises:
        InputError: the file cannot be read, a row is broken (with its line), or a library is missing.
    """
    given = shown_path(path)
    count, how = _counter(tokenizer, chars_per_token)
    counts: dict[int, int] = {}
    columns: Columns | None = None
    empty = 0
    for where, row in _rows(path, given, column):
        columns = columns or columns_of(row, column, where)
        length = length_of(row, columns, count, where)
        if length:
            counts[length] = counts.get(length, 0) + 1
        else:
            empty += 1
    if columns is None:
        raise InputError(f"{given} is empty; give a file with a row for each sequence")
    notes = [how] if columns.kind in ("chat", "text") else []
    if columns.kind == "chat":
        notes.append("the tokens of a chat template are not counted")
    if empty:
        notes.append(f"{empty} rows without a token are left out")
    return of_counts(counts, f"{given} by {'+'.join(columns.names)}", tuple(notes))


def columns_of(row: Mapping[str, Any], column: str | None, where: str) -> Columns:
    """The columns that decide, by the first row. Raises InputError where none is known."""
    if column is not None:
        value = row.get(column)
        kind = "text" if isinstance(value, str) else "number" if isinstance(value, int) else "list"
        if isinstance(value, list) and value and isinstance(value[0], dict):
            kind = "chat"
        if column in row:
            return Columns(kind, (column,))
    else:
        for kind, known in (("number", NUMBERS), ("list", LISTS), ("chat", CHATS)):
            for name in known:
                if name in row:
                    return Columns(kind, (name,))
        for names in TEXTS:
            if all(name in row for name in names):
                return Columns("text", names)
    wanted = (
        repr(column)
        if column is not None
        else "none of length, num_tokens, input_ids, messages, text, prompt with completion, ..."
    )
    have = ", ".join(map(str, list(row)[:8])) or "none"
    raise InputError(
        f"{where}: the columns are {ascii(have)[1:-1][:200]}, {wanted} is among them; name one with --dataset-column"
    )


def length_of(row: Mapping[str, Any], columns: Columns, count: Count, where: str) -> int:
    """Tokens of a row. Raises InputError for a missing column or a value of another type than the first row's."""
    total = 0
    for name in columns.names:
        if name not in row:
            raise InputError(f"{where}: the column {name!r} is missing, which the first row has; make rows alike")
        value = row[name]
        if columns.kind == "number":
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LONGEST:
                raise InputError(f"{where}: {name} is {_shown(value)}, but must be a number of tokens from 0 to {LONGEST}")
            total += value
        elif columns.kind == "list":
            if not isinstance(value, list):
                raise InputError(f"{where}: {name} is {_shown(value)}, but must be a list of tokens as in the first row")
            total += len(value)
        elif columns.kind == "chat":
            total += sum(count(text) for text in _turns(value, name, where))
        elif isinstance(value, str):
            total += count(value) if value else 0
        else:
            raise InputError(f"{where}: {name} is {_shown(value)}, but must be text as in the first row")
    return total


def _turns(value: Any, name: str, where: str) -> Iterator[str]:
    """The texts of a chat: `content` or `value` of each turn, whole or in parts."""
    if not isinstance(value, list):
        raise InputError(f"{where}: {name} is {_shown(value)}, but must be a list of turns")
    for turn in value:
        content = turn.get("content", turn.get("value")) if isinstance(turn, dict) else None
        parts = content if isinstance(content, list) else [content]
        for part in parts:
            text = part.get("text") if isinstance(part, dict) else part
            if text is None and isinstance(turn, dict) and (isinstance(part, dict) or turn.get("tool_calls")):
                continue  # an image, or a call of a tool
            if not isinstance(text, str):
                raise InputError(f"{where}: a turn of {name} has no text under content or value")
            if text:
                yield text


def _rows(path: str, given: str, column: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    full = os.path.expanduser(path)
    try:
        if not os.path.isfile(full):
            what = "is no file" if os.path.exists(full) else "does not exist"
            raise InputError(f"{given} {what}; give a .jsonl or .parquet file")
        with open(full, "rb") as file:
            if file.read(4) == b"PAR1":
                yield from _parquet(full, given, column)
                return
            file.seek(0)
            yield from _json_lines(file, given)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{given} cannot be read: {' '.join(str(error).split())[:200]}; check the path and the file") from error


def _json_lines(file: BinaryIO, given: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    number = 0
    while line := file.readline(LONGEST_LINE_BYTES + 1):
        number += 1
        where = f"{given}, line {number}"
        if len(line) > LONGEST_LINE_BYTES:
            raise InputError(f"{where} is longer than 64 MiB; give JSON lines, one sequence a line")
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise InputError(f"{where} is not UTF-8 text (byte {error.start}); give JSON lines or Parquet") from error
        except (ValueError, RecursionError) as error:
            hint = (
                "; a JSON array is not JSON lines, write one object a line" if number == 1 and line.lstrip()[:1] == b"[" else ""
            )
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise InputError(f"{where} is not valid JSON: {reason}{hint or '; correct or remove it'}") from error
        if not isinstance(row, dict):
            hint = "a JSON array is not JSON lines" if isinstance(row, list) else "a row is one object"
            raise InputError(f"{where} holds {_shown(row)}; {hint}, write one object a line")
        yield where, row


def _parquet(path: str, given: str, column: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        pyarrow: Any = import_module("pyarrow")
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError(
            f"{given} is Parquet, and pyarrow is not installed; pip install 'tuneplan[data]', or give JSON lines"
        ) from error
    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        known = {*NUMBERS, *LISTS, *CHATS, *(name for group in TEXTS for name in group)}
        wanted = [name for name in names if name == column or (column is None and name in known)]
        number = 0
        for batch in file.iter_batches(batch_size=512, columns=wanted or names):
            for row in batch.to_pylist():
                number += 1
                yield f"{given}, row {number}", row
    except pyarrow.ArrowException as error:
        raise InputError(f"{given} is broken Parquet: {' '.join(str(error).split())[:200]}; write it again") from error


def _counter(tokenizer: str | None, chars_per_token: float | None) -> tuple[Count, str]:
    """How text is counted, and the words for it."""
    if tokenizer is None:
        ratio = CHARS_PER_TOKEN if chars_per_token is None else chars_per_token
        if not 0.1 <= ratio <= 100:
            raise InputError(f"chars-per-token {ratio} is no ratio of a tokenizer; use such as 4")
        why = "assumed" if chars_per_token is None else "given"
        return lambda text: math.ceil(len(text) / ratio), f"{ratio:g} characters a token, {why}; --tokenizer counts them"
    if chars_per_token is not None:
        raise InputError("--tokenizer and --chars-per-token both say how text is counted; give one of them")
    path = Path(os.path.expanduser(tokenizer))
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise InputError(
            f"--tokenizer {shown_path(tokenizer)} has no tokenizer.json; give the folder of a downloaded model, or the file"
        )
    try:
        tokenizers: Any = import_module("tokenizers")
    except ImportError as error:
        raise InputError("--tokenizer needs the tokenizers library; pip install 'tuneplan[data]'") from error
    try:
        loaded = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise InputError(
            f"--tokenizer {shown_path(str(path))} is no tokenizer.json: {' '.join(str(error).split())[:200]}"
        ) from error
    loaded.no_truncation()
    loaded.no_padding()
    return lambda text: len(loaded.encode(text).ids), f"tokens counted by {path}"


def _shown(value: object) -> str:
    """A value in a message: its kind, or itself where it is short."""
    names = {dict: "an object", list: "a list", str: "text", type(None): "null"}
    return names.get(type(value)) or json.dumps(value, default=str)[:40]
