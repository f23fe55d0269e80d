"""Reading a file; what can be wrong with one is tested for both kinds of user file in test_user_files."""

from pathlib import Path

import pytest

from tuneplan.hardware_profiles.errors import ProfileError
from tuneplan.hardware_profiles.reading import read_text, read_toml


def test_text_without_its_mark(tmp_path: Path) -> None:
    """The byte order mark is no part of the text."""
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbfabc")
    assert read_text(tmp_path / "file") == "abc"


def test_limit(tmp_path: Path) -> None:
    """A file of exactly the limit is read, one byte more is not."""
    (tmp_path / "file").write_bytes(b"abcd")
    assert read_text(tmp_path / "file", 4) == "abcd"
    with pytest.raises(ProfileError, match="4 bytes, more than the 3 that are read"):
        read_text(tmp_path / "file", 3)


def test_toml(tmp_path: Path) -> None:
    """A table."""
    (tmp_path / "file").write_text("a = 1")
    assert read_toml(tmp_path / "file") == {"a": 1}
