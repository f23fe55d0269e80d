"""Typed access to keys: what is read is used, what is not is accounted for, and errors name file, line and key."""

import re

import pytest

from tuneplan.planner.configs.facts import Facts
from tuneplan.planner.configs.section import Section
from tuneplan.planner.configs.table import Table
from tuneplan.planner.errors import InputError
from tuneplan.planner.json_file import parse_json
from tuneplan.planner.yaml_file import parse_yaml

TABLE = Table(
    {"batch": "micro-batch size", "on": "a switch", "norm": "clipping", "kind": "a word", "modules": "targets"},
    {"logging": ("log_dir", "api_key")},
    {"noise on embeddings": ("noise",)},
    {"old_batch": "batch"},
    {"noise": 3},
)


def section(text: str, unknown: str = "error", numbers: bool = False) -> Section:
    """A section of a text."""
    file = parse_yaml(text, "f.yaml", "1.1")
    return Section(file, (), file.data, TABLE, Facts(), unknown, numbers_in_text=numbers)


def test_every_key_becomes_one_entry() -> None:
    """Used keys, keys without effect, and keys that are not modelled unless they ask for nothing."""
    read = section("batch: 4\nlog_dir: x\nnoise: 5\nkind: a\n")
    assert 4 == read.integer("batch")
    read.finish()
    found = [(e.key, e.line, e.status) for e in read.facts.entries]
    assert [("batch", 1, "used"), ("log_dir", 2, "irrelevant"), ("noise", 3, "not_modelled"), ("kind", 4, "irrelevant")] == found
    assert ["f.yaml line 3 (noise) is not modelled: noise on embeddings"] == read.facts.warnings


@pytest.mark.parametrize("value", ["3", "null", "0", "false", "[]", '""'])
def test_a_key_at_its_default_asks_for_nothing(value: str) -> None:
    """The tool's default, and what switches a thing off, is no warning."""
    read = section(f"noise: {value}")
    read.finish()
    assert ([], ["irrelevant"]) == (read.facts.warnings, [e.status for e in read.facts.entries])


def test_an_earlier_name_is_read_as_the_present_one() -> None:
    """A key of an earlier version gives its value, and messages show the name that the file has."""
    read = section("old_batch: 7")
    assert (7, "f.yaml line 1 (old_batch)") == (read.integer("batch"), read.source("batch"))
    read.finish()
    assert "batch in present versions" in read.facts.entries[0].note


@pytest.mark.parametrize(
    ("text", "call", "message"),
    [
        ("a: 1\nbatch: two", ("integer", "batch"), "f.yaml line 2: batch: 'two' is no whole number"),
        ("batch: 0", ("integer", "batch"), "f.yaml line 1: batch: 0 is too small"),
        ("batch: true", ("integer", "batch"), "true is no whole number"),
        ("batch: 2.5", ("integer", "batch"), "2.5 is no whole number"),
        ("batch: 99999999999999999999", ("integer", "batch"), "too large"),
        ("norm: 1e-4", ("number", "norm"), "because YAML 1.1 reads a number with e only with a point and a sign"),
        ("norm: .nan", ("number", "norm"), "nan is no number"),
        ("on: maybe", ("flag", "on"), "'maybe' is neither true nor false"),
        ("kind: ${x}", ("text", "kind"), "a template that nobody has filled in"),
        ("batch: '{{ size }}'", ("integer", "batch"), "a template that nobody has filled in"),
        ("kind: [1]", ("text", "kind"), "a list is no text"),
        ("modules: {a: 1}", ("names", "modules"), "a section is no list of names"),
        ("modules: [1]", ("names", "modules"), "no list of names"),
        ("kind: 3", ("mapping", "kind"), "3 is no section"),
    ],
)
def test_wrong_values_are_errors_at_their_line(text: str, call: tuple[str, str], message: str) -> None:
    """The file, the line, the key, what was given and what to write."""
    with pytest.raises(InputError, match=re.escape(message)):
        getattr(section(text), call[0])(call[1])


def test_numbers_as_text_where_the_tool_converts_them() -> None:
    """`1e-4` is text under YAML 1.1; some tools make it a number all the same."""
    assert (1e-4, 8) == (section("norm: 1e-4", numbers=True).number("norm"), section("batch: '8'", numbers=True).integer("batch"))


def test_unknown_keys_with_close_matches() -> None:
    """An error where the tool refuses them too, else a warning that says what the tool does."""
    with pytest.raises(InputError, match=r"line 1: bacht: unknown key\. Did you mean 'batch'"):
        section("bacht: 4").finish()
    read = section("bacht: 4", unknown="the tool ignores it")
    read.finish()
    assert ["not_modelled"] == [e.status for e in read.facts.entries]
    assert "the tool ignores it" in read.facts.warnings[0]


def test_choices_with_close_matches() -> None:
    """Case does not matter; a slip of the finger is answered."""
    assert "Nf4" == section("kind: NF4").choice("kind", ("Nf4", "fp4"))
    with pytest.raises(InputError, match="Did you mean nf4"):
        section("kind: nf5").choice("kind", ("nf4", "double"))


def test_secrets_are_never_quoted() -> None:
    """A value under a secret's name, or with the looks of one, is hidden in messages and notes."""
    read = section("api_key: abc\nbatch: hf_abcdefghijklmnop\n")
    with pytest.raises(InputError) as error:
        read.integer("batch")
    read.finish()
    assert "hf_" not in str(error.value) + repr(read.facts)


def test_yaml_1_1_words_are_what_the_tools_read() -> None:
    """`no` and `on` are false and true, numbers may have underscores, hexadecimal and octal digits."""
    data = parse_yaml("a: no\nb: On\nc: 1_000\nd: 0x10\ne: 010\nf: 1e-4\ng: 1.0e-4\nh: 'no'\ni: 12:30\nj: ~\n", "f", "1.1").data
    assert {"a": False, "b": True, "c": 1000, "d": 16, "e": 8, "f": "1e-4", "g": 1e-4, "h": "no", "i": "12:30", "j": None} == data


def test_json_has_lines_too() -> None:
    """Each key's line, also in lists of objects."""
    file = parse_json('{\n "a": [1,\n {"b": 2}],\n "c": {"d":\n null}\n}', "f.json")
    assert {"a": [1, {"b": 2}], "c": {"d": None}} == file.data
    assert (2, 3, 4) == (file.line(("a",)), file.line(("a", 1, "b")), file.line(("c", "d")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n "a": 2}', "f line 2: 'a' was given on line 1 already"),
        ('{"a": 1,\n}', "f line 2: not valid JSON: a key in double quotes is missing"),
        ('{"a": NaN}', "a value is missing"),
        ('{"a" 1}', "a colon is missing"),
        ('{"a": 1} x', "more text after the end"),
        ('{"a": "x', "a text that is not closed"),
        ("[" * 100_000, "levels deep"),
        ('{"a": ', "the file ends where a value should be"),
        ("", "the file ends where a value should be"),
        ('{"a": 1 "b": 2}', "a comma or } is missing"),
    ],
)
def test_broken_json_is_an_error_at_its_line(text: str, message: str) -> None:
    """What is wrong, where, and never a traceback."""
    with pytest.raises(InputError, match=re.escape(message)):
        parse_json(text, "f")
