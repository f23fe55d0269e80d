"""The YAML writer against PyYAML: whatever JSON has comes back as it was."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneplan.planner.export.yaml_text import Commented, document

yaml = pytest.importorskip("yaml")

SCALARS = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(codec="ascii", exclude_characters="\x7f", exclude_categories=["Cc"]), max_size=20)
FLAT = st.lists(SCALARS | TEXTS, max_size=4)
KEYS = TEXTS.filter(bool)
VALUES = st.recursive(
    SCALARS | TEXTS | FLAT,
    lambda inner: (
        st.dictionaries(KEYS, inner, min_size=1, max_size=3) | st.lists(st.dictionaries(KEYS, inner, min_size=1, max_size=2))
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_a_reader_finds_what_was_written(values: dict[str, object]) -> None:
    """Any mapping of text, numbers, lists and mappings."""
    assert (yaml.safe_load(document(values, "A head.\n\nOf lines.")) or {}) == values


def test_comments_and_words() -> None:
    """A comment stands above its key; words that YAML 1.1 takes for something else are quoted; 2e-5 stays a number."""
    text = document({"a": Commented(2e-5, "Why."), "fsdp": "no", "n": "on", "path": "meta-llama/Llama-2-7b-hf", "x": "a\nb\n"})
    assert text == '# Why.\na: 2.0e-05\nfsdp: "no"\n"n": "on"\npath: meta-llama/Llama-2-7b-hf\nx: |\n  a\n  b\n'
    assert {"a": 2e-5, "fsdp": "no", "n": "on", "path": "meta-llama/Llama-2-7b-hf", "x": "a\nb\n"} == yaml.safe_load(text)
