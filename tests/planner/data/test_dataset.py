"""Reading data sets: usual columns, a local tokenizer, and files that are not what they should be."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tuneplan.planner.data import dataset
from tuneplan.planner.data.dataset import read
from tuneplan.planner.errors import InputError

CHAT = [
    {"role": "user", "content": "a" * 8},
    {"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "b" * 5}]},
]


def written(tmp_path: Path, *rows: Any) -> str:
    """A JSON lines file."""
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("row", "tokens", "columns"),
    [
        ({"text": "a" * 10}, 3, "text"),
        ({"prompt": "a" * 4, "completion": "b" * 4}, 2, "prompt+completion"),
        ({"instruction": "aaaa", "input": "", "output": "bbbb"}, 2, "instruction+input+output"),
        ({"messages": CHAT}, 4, "messages"),
        ({"conversations": [{"from": "human", "value": "a" * 8}]}, 2, "conversations"),
        ({"input_ids": [1, 2, 3], "labels": [1, 2, 3]}, 3, "input_ids"),
        ({"num_tokens": 17, "text": "a"}, 17, "num_tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_usual_columns(tmp_path: Path, row: dict[str, Any], tokens: int, columns: str) -> None:
    """A number wins over ids, ids over text; text at four characters a token, each column rounded up."""
    lengths = read(written(tmp_path, row))
    assert (1, tokens) == (lengths.sequences, lengths.total)
    assert lengths.source.endswith(f" by {columns}")
    assert any("assumed" in note for note in lengths.notes) == (columns not in ("input_ids", "num_tokens"))


def test_a_ratio_and_a_column_of_one_s_own(tmp_path: Path) -> None:
    """The ratio is said to be given; a named column decides."""
    lengths = read(written(tmp_path, {"text": "a", "body": "a" * 10}), chars_per_token=5, column="body")
    assert 2 == lengths.total
    assert "5 characters a token, given" in lengths.notes[0]


def test_a_local_tokenizer(tmp_path: Path) -> None:
    """Its tokens, not characters."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.enable_truncation(1)
    made.save(str(tmp_path / "tokenizer.json"))
    lengths = read(written(tmp_path, {"text": "a b something"}), tokenizer=str(tmp_path))
    assert 3 == lengths.total
    assert lengths.notes[0].startswith("tokens counted by")


def test_empty_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    """A row without a token is none to train on."""
    lengths = read(written(tmp_path, {"text": "abcd"}, {"text": ""}, {"text": ""}))
    assert 1 == lengths.sequences
    assert "2 rows without a token are left out" in lengths.notes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', "line 2 is not valid JSON"),
        (b'{"text": "a"}\n\xff\n', "line 2 is not UTF-8"),
        (b'{"text": "a"}\n{"body": "a"}\n', "line 2: the column 'text' is missing"),
        (b'{"text": "a"}\n{"text": 5}\n', "line 2: text is 5, but must be text"),
        (b'{"text": null}\n', "line 1: text is null"),
        (b'{"length": 5}\n{"length": "5"}\n', "line 2: length is text, but must be a number"),
        (b'{"length": -5}\n', "line 1: length is -5"),
        (b'{"length": true}\n', "line 1: length is true"),
        (b'{"input_ids": [1]}\n{"input_ids": 1}\n', "line 2: input_ids is 1, but must be a list"),
        (b'{"messages": "hello"}\n', "line 1: messages is text, but must be a list of turns"),
        (b'{"messages": [{"role": "user"}]}\n', "line 1: a turn of messages has no text"),
        (b'{"foo": 1, "bar": 2}\n', "the columns are foo, bar, none of length"),
        (b'[{"text": "a"}]\n', "a JSON array is not JSON lines"),
        (b"[\n", "a JSON array is not JSON lines"),
        (b"5\n", "line 1 holds 5; a row is one object"),
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b'{"text": ""}\n', "holds no sequence"),
        (b"[" * 100000, "line 1 is not valid JSON"),
        (b"PAR1 is no Parquet", "Parquet"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, message: str) -> None:
    """One line of reason, with the line of the file."""
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(str(path))


def test_an_endless_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not read into memory."""
    monkeypatch.setattr(dataset, "LONGEST_LINE_BYTES", 50)
    with pytest.raises(InputError, match="line 1 is longer than 64 MiB"):
        read(written(tmp_path, {"text": "a" * 100}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"column": "other"}, "'other' is among them|other"),
        ({"chars_per_token": 0.0}, "no ratio of a tokenizer"),
        ({"tokenizer": "/no/such/folder"}, "has no tokenizer.json"),
        ({"tokenizer": "/no/such", "chars_per_token": 3.0}, "both say how text is counted"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """By name."""
    with pytest.raises(InputError, match=message):
        read(written(tmp_path, {"text": "a"}), **options)


@pytest.mark.parametrize("path", ["no/such.jsonl", "/", "a\0b"])
def test_no_file(path: str) -> None:
    """A folder, nothing, and no path at all."""
    with pytest.raises(InputError, match=r"give a \.jsonl or \.parquet file|cannot be read"):
        read(path)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says which extra."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1....PAR1")
    with pytest.raises(InputError, match=r"pip install 'tuneplan\[data\]'"):
        read(str(path))


def test_parquet(tmp_path: Path) -> None:
    """The same columns, by batches of rows."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = str(tmp_path / "data.parquet")
    parquet.write_table(pyarrow.table({"text": ["abcd"] * 2000, "other": [1] * 2000}), path)
    assert (2000, 2000) == (read(path).sequences, read(path).total)
