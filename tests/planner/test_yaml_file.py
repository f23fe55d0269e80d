"""YAML that anybody may have written: plain data with lines, and refusals that name the line."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneplan.planner.errors import InputError
from tuneplan.planner.yaml_file import DEEPEST, MOST_BYTES, MOST_NODES, parse_yaml, read_yaml, unknown_key


def test_values_are_plain_data_as_yaml_1_2_reads_them() -> None:
    """Words such as `no` and `12:30` stay text; numbers, true, false and null are what they say."""
    text = "a: 1\nb: 2.5\nc: true\nd: null\ne: no\nf: 12:30\ng: '7'\nh: 1e3\ni: [x, {y: 010}]\nj: 2026-01-31\n"
    expected = {
        "a": 1,
        "b": 2.5,
        "c": True,
        "d": None,
        "e": "no",
        "f": "12:30",
        "g": "7",
        "h": 1000.0,
        "i": ["x", {"y": 10}],
        "j": "2026-01-31",
    }
    assert expected == parse_yaml(text, "f").data


def test_every_value_has_its_line() -> None:
    """Values of lists and mappings are found, and what is not there gives the nearest value around it."""
    file = parse_yaml("a:\n  - x: 1\n  - y: 2\n\nb: {c: 3}\n", "f")
    assert [1, 2, 3, 3, 5, 5, 3] == [
        file.line(path) for path in [("a",), ("a", 0, "x"), ("a", 1), ("a", 1, "y"), ("b",), ("b", "c"), ("a", 1, "missing")]
    ]


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("a: 1\nb: &x 2\n", 2, "anchor"),
        ("a: 1\nb: *x\n", 2, "alias"),
        ("a: 1\n<<: {b: 2}\n", 2, "<<"),
        ("a: 1\n\na: 2\n", 3, "line 1"),
        ("a: 1\n[b]: 2\n", 2, "key"),
        ("a: 1\n? {b: 1}\n: 2\n", 2, "key"),
        ("a: !!python/name:os.system\n", 1, "tag"),
        ("a: !own 1\n", 1, "tag"),
        ("a: [1\n", 2, "not valid YAML"),
        ("a: 1\n\tb: 2\n", 2, "not valid YAML"),
        ("a: '\n", 2, "not valid YAML"),
        ("a: 1\n---\nb: 2\n", 2, "not valid YAML"),
    ],
)
def test_what_is_refused_names_its_line(text: str, line: int, word: str) -> None:
    """Anchors, aliases, merges, tags, keys given twice and broken text."""
    with pytest.raises(InputError, match=rf"^f line {line}: .*{word}"):
        parse_yaml(text, "f")


def test_a_bomb_of_aliases_is_refused_at_its_first_anchor() -> None:
    """Nine lines that would become 10^9 values never do."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(InputError, match=r"^f line 1: anchor &a0"):
        parse_yaml("\n".join(lines), "f")


def test_depth_is_bounded() -> None:
    """One level more than allowed is refused, and so are a hundred thousand."""
    parse_yaml("[" * DEEPEST + "1" + "]" * DEEPEST, "f")
    for depth in (DEEPEST + 1, 100_000):
        with pytest.raises(InputError, match="levels"):
            parse_yaml("[" * depth + "1" + "]" * depth, "f")


def test_number_of_values_is_bounded() -> None:
    """A list of half a million values is refused at the line where it becomes too long."""
    with pytest.raises(InputError, match=rf"^f line \d+: more than {MOST_NODES:,} values"):
        parse_yaml("- 1\n" * MOST_NODES, "f")


def test_size_is_bounded(tmp_path: Path) -> None:
    """A file beyond the limit is not read to its end."""
    path = tmp_path / "large.yaml"
    path.write_bytes(b"#" * (MOST_BYTES + 2))
    with pytest.raises(InputError, match="larger than 8 MiB"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"# nothing\n", "empty"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"a: \x00", "not valid YAML"),
        (b"\xef\xbb\xbfa: 1\nb: &x 1", "line 2"),
    ],
)
def test_files_of_any_bytes(tmp_path: Path, content: bytes, word: str) -> None:
    """Empty files, other encodings and control characters."""
    path = tmp_path / "f.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=word):
        read_yaml(path)


@pytest.mark.parametrize("path", ["/nonexistent", "/dev/zero", "/", "a\0b"])
def test_paths_that_are_no_files(path: str) -> None:
    """Nothing hangs, and the path is named."""
    with pytest.raises(InputError, match=r"Check|Give"):
        read_yaml(path)


def test_unknown_keys_get_close_matches() -> None:
    """A slip of the finger is answered with the key that was meant, else with all of them."""
    assert "Did you mean 'requests'?" in unknown_key("reqests", ["requests", "model"])
    assert "Known here: model, requests." in unknown_key("zzz", ["requests", "model"])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(st.sampled_from(list("ab:-[]{}&*!|>'\"#,?\n \t0.\\%@`"))))
def test_any_text_is_data_or_a_refusal(text: str) -> None:
    """Nothing else than data or an InputError comes out."""
    with suppress(InputError):
        assert parse_yaml(text, "f").data is not None
