"""Reading config.json: every unusable input gets one clear line, and values are checked for type and bounds."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.config import ConfigReader, read_config_file


def reader(**values: Any) -> ConfigReader:
    """A reader of a config with these values."""
    return ConfigReader(values, "m.json")


def message_of(path: object) -> str:
    """The one line with which a path is refused."""
    with pytest.raises(InputError) as caught:
        read_config_file(path)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_file_and_its_folder_give_the_same_object(tmp_path: Path) -> None:
    """A config.json can be given as the file or as the folder that holds it, as str or Path."""
    file = tmp_path / "config.json"
    file.write_text('{"hidden_size": 64, "nested": {"a": [1, null]}}')
    expected = {"hidden_size": 64, "nested": {"a": [1, None]}}
    assert expected == read_config_file(file)
    assert expected == read_config_file(str(tmp_path))


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that starts with ~ is looked up in the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert {} == read_config_file("~/config.json")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b'{"hidden_size": 64,\n "vocab', "at line 2 column 2"),
        (b"not json", "at line 1 column 1"),
        (b"{'hidden_size': 64}", "at line 1 column 2"),
        (b"\xff\xfe\x00\x01", "is not UTF-8 text (byte 0)"),
        (b"[1, 2]", "holds a list, but a config.json is one JSON object"),
        (b"7", "holds 7, but"),
        (b"null", "holds null, but"),
        (b'{"a": NaN}', "holds NaN"),
        (b'{"a": -Infinity}', "holds -Infinity"),
        (b'{"a": ' + b"9" * 5000 + b"}", "number that is too long"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (b" " * (2**20 + 1), "larger than 1 MiB"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unusable_content_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    """A file that is not one JSON object of ordinary size is refused, with the reason and the place."""
    file = tmp_path / "config.json"
    file.write_bytes(content)
    message = message_of(file)
    assert expected in message
    assert ascii(str(file)) in message


def test_exactly_one_mebibyte_is_read(tmp_path: Path) -> None:
    """The size limit itself is allowed."""
    file = tmp_path / "config.json"
    file.write_bytes(b"{}" + b" " * (2**20 - 2))
    assert {} == read_config_file(file)


def test_duplicate_keys_and_byte_order_mark_are_accepted(tmp_path: Path) -> None:
    """A repeated key takes its last value, as in the json module; a leading byte order mark is skipped."""
    file = tmp_path / "config.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1, "a": 2}')
    assert {"a": 2} == read_config_file(file)


def test_missing_file_and_empty_folder(tmp_path: Path) -> None:
    """A path that is not there, below a file, or a folder without a config.json says so."""
    (tmp_path / "file").write_text("{}")
    assert "does not exist" in message_of(tmp_path / "absent.json")
    assert "does not exist" in message_of(tmp_path / "file" / "config.json")
    assert "has no config.json" in message_of(tmp_path)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not be read is refused with the system's reason."""
    file = tmp_path / "config.json"
    file.write_text("{}")

    def refuse(*arguments: object, **options: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert "Permission denied" in message_of(file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    """A FIFO would block the reader for ever, so it is never opened; nor is one inside a given folder."""
    os.mkfifo(tmp_path / "config.json")
    assert "not a regular file" in message_of(tmp_path / "config.json")
    assert "not a regular file" in message_of(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="the system has no /dev/zero")
def test_device_is_refused() -> None:
    """An endless device is not read."""
    assert "not a regular file" in message_of("/dev/zero")


@pytest.mark.parametrize("path", ["config\0.json", "x" * 5000, "no\nsuch\udc80.json"], ids=["nul", "long", "odd"])
def test_odd_paths_are_refused_on_one_short_line(path: str) -> None:
    """NUL bytes, endless names, newlines and undecodable bytes in a path give a short ASCII line."""
    message = message_of(path)
    assert message.isascii()
    assert len(message) < 400


def test_code_named_in_a_config_is_not_run(tmp_path: Path) -> None:
    """`auto_map` points to Python files beside the config; they are only data here."""
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "evil.Config"}}))
    assert {"auto_map": {"AutoConfig": "evil.Config"}} == read_config_file(tmp_path)


def test_values_of_each_type() -> None:
    """Each accessor gives the value as it stands."""
    config = reader(n=64, f=1e-5, i=12, b=False, s="llama", text_config={"n": 3})
    assert 64 == config.integer("n")
    assert 64 == config.optional_integer("n")
    assert 1e-5 == config.number("f")
    assert (12.0, float) == (config.number("i"), type(config.number("i")))
    assert config.boolean("b") is False
    assert "llama" == config.text("s")
    assert 3 == config.section("text_config").integer("n")


def test_null_counts_as_absent() -> None:
    """A null takes the default, exactly as a missing key does."""
    for config in (reader(), reader(key=None)):
        assert not config.has("key")
        assert 8 == config.integer("key", 8)
        assert config.optional_integer("key") is None
        assert 0.5 == config.number("key", 0.5)
        assert config.boolean("key", True) is True
        assert "silu" == config.text("key", "silu")


@pytest.mark.parametrize("accessor", ["integer", "number", "boolean", "text", "section"])
def test_required_key_is_missed_by_name(accessor: str) -> None:
    """Without a default, a missing key is an error that names the file and the key."""
    with pytest.raises(InputError, match=r"^m\.json: the key 'hidden_size' is missing\. "):
        getattr(reader(), accessor)("hidden_size")


@pytest.mark.parametrize(
    ("accessor", "value", "expected"),
    [
        ("integer", True, "is true, but must be an integer"),
        ("integer", 4096.0, "is 4096.0, but must be an integer"),
        ("integer", "4096", 'is "4096", but must be an integer'),
        ("integer", [1], "is a list, but must be an integer"),
        ("number", False, "is false, but must be a number"),
        ("number", "x" * 500, 'is "xxx'),
        ("boolean", 1, "is 1, but must be true or false"),
        ("text", 1, "is 1, but must be a string"),
        ("section", [], "is a list, but must be an object"),
        ("text", {}, "is an object, but must be a string"),
    ],
)
def test_wrong_type_is_refused(accessor: str, value: object, expected: str) -> None:
    """A value of another type is named with its key; a boolean is no integer and 4096.0 is not 4096."""
    with pytest.raises(InputError) as caught:
        getattr(reader(key=value), accessor)("key")
    assert str(caught.value).startswith(f"m.json: 'key' {expected}")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [0, -1, 2**24 + 1, 10**4000], ids=["zero", "negative", "above", "long"])
def test_integer_out_of_bounds_is_refused(value: int) -> None:
    """Zero, negative and absurd sizes are refused with the bounds."""
    for accessor in (ConfigReader.integer, ConfigReader.optional_integer):
        with pytest.raises(InputError, match=r"must be from 1 to 16777216") as caught:
            accessor(reader(key=value), "key")
        assert len(str(caught.value)) < 200


def test_integer_bounds_are_inclusive_and_can_be_given() -> None:
    """Both ends are allowed, and a caller's own bounds replace the usual ones."""
    assert [1, 2**24] == [reader(key=value).integer("key") for value in (1, 2**24)]
    assert 0 == reader(key=0).integer("key", minimum=0)
    with pytest.raises(InputError, match="from 0 to 5"):
        reader(key=6).integer("key", minimum=0, maximum=5)


@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan"), 10**400], ids=["negative", "inf", "nan", "long"])
def test_number_out_of_bounds_is_refused(value: float) -> None:
    """A negative, infinite (1e999 in the file) or endless number is refused with the bounds."""
    with pytest.raises(InputError, match=r"must be from 0\.0 to 1"):
        reader(key=value).number("key")


def test_number_too_large_for_a_double_is_refused_from_a_file(tmp_path: Path) -> None:
    """The json module reads 1e999 as infinity; the accessor refuses it."""
    (tmp_path / "config.json").write_text('{"rope_theta": 1e999}')
    config = ConfigReader(read_config_file(tmp_path), "m.json")
    with pytest.raises(InputError, match="'rope_theta' is Infinity"):
        config.number("rope_theta")


def test_section_names_its_origin() -> None:
    """An error inside a section names the file and the section."""
    config = reader(text_config={"n": 0})
    with pytest.raises(InputError, match=r"^m\.json, text_config: 'n' is 0"):
        config.section("text_config").integer("n")
