"""The file of cases: where it is found, what it may say, and what is said of one that is wrong."""

from pathlib import Path

import pytest

pytest.importorskip("pydantic")

from regressions import cases

from tuneplan.planner.errors import InputError
from tuneplan.profiling.regression.cases import Limits, find

CASE = '[cases.a]\nentry_point = "train.py:build"\n'


def test_own_file_before_the_shared_one(tmp_path: Path) -> None:
    """tuneplan.toml is found first, then [tool.tuneplan] of pyproject.toml; neither is an error that says what to write."""
    with pytest.raises(InputError, match=r"neither a tuneplan\.toml nor"):
        find(tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n')
    with pytest.raises(InputError, match=r"neither a tuneplan\.toml nor"):
        find(tmp_path)
    (tmp_path / "pyproject.toml").write_text('[tool.tuneplan.cases.a]\nmodel = "7b"\n')
    assert tmp_path / "pyproject.toml" == find(tmp_path)
    (tmp_path / "tuneplan.toml").write_text(CASE)
    assert tmp_path / "tuneplan.toml" == find(tmp_path)


def test_the_shared_file(tmp_path: Path) -> None:
    """A case in pyproject.toml is that of tuneplan.toml under another name, and knows its line."""
    text = '[project]\nname = "x"\n\n[tool.tuneplan.cases.small]\nmodel = "7b"\nseq_len = 64\n'
    found = cases(tmp_path, text, "pyproject.toml").cases["small"]

    assert {"device": "meta", "model": "7b", "seq_len": 64} == found.settings()
    assert found.line == 4


def test_words_are_those_of_plan_trace(tmp_path: Path) -> None:
    """Each word of a case becomes the option of its name; lists are read as the command line's commas."""
    text = (
        '[cases.a]\nmodel = "7b"\nmethod = "lora"\nrank = 4\ntarget_modules = ["q_proj", "v_proj"]\nseq_len = 64\n'
        "micro_batch_size = 2\ngradient_checkpointing = true\n"
    )
    asked = cases(tmp_path, text).cases["a"].asked(tmp_path)

    assert (64, 2, "non-reentrant") == (
        asked.settings.seq_len,
        asked.settings.micro_batch_size,
        asked.settings.gradient_checkpointing,
    )
    assert (None, "") == (asked.peft_config, asked.task)
    assert "q_proj" in str(asked.method.parts[0])


def test_limits_hold_each_on_its_own() -> None:
    """The lowest of the limits that are given is the one that counts."""
    assert Limits().allowed(1000) is None
    assert Limits(max_increase=5).allowed(1000) == 1005
    assert Limits(max_increase=50, max_increase_percent=1).allowed(1000) == 1010
    assert Limits.model_validate({"max_bytes": "1KiB", "max_increase": 50}).allowed(1000) == 1024
    assert Limits(max_increase=50).allowed(None) is None


def test_without_limits_nothing_may_grow(tmp_path: Path) -> None:
    """The default limit of a deterministic count is none at all; those of the file hold for every case that has no own."""
    assert cases(tmp_path, CASE).cases["a"].limits.allowed(100) == 100
    assert cases(tmp_path, "[limits]\nmax_increase_percent = 10\n" + CASE).cases["a"].limits.allowed(100) == 110
    own = "[limits]\nmax_increase_percent = 10\n" + CASE + "max_increase_percent = 20\n"
    assert cases(tmp_path, own).cases["a"].limits.allowed(100) == 120


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no case"),
        ("[cases.a]\n", "neither a model nor an entry_point"),
        ('[cases.a]\nmodel = "7b"\nseqlen = 5\n', "Did you mean 'seq_len'"),
        (CASE + "seq_len = 5\n", "the entry point builds everything"),
        (CASE + 'max_bytes = "a lot"\n', "not a size in bytes"),
        (CASE + "max_increase = -1\n", "greater than or equal to 0"),
        (CASE + "max_increase_percent = nan\n", "finite"),
        (CASE + "time_limit_seconds = 0\n", "greater than 0"),
        (CASE + 'device = "tpu"\n', "'meta', 'cpu' or 'gpu'"),
        (CASE + "[cases.a.components.logit]\nmax_bytes = 1\n", "Did you mean 'logits'"),
        (CASE + "[cases.a.components.logits]\nmost = 1\n", "unknown key cases.a.components.logits.most"),
        ("casess = 1\n" + CASE, "unknown key casess; known are baseline, limits, cases"),
        ("[cases.a\n", "is not TOML"),
        ("<<<<<<< HEAD\n" + CASE, "tuneplan.toml:1 is in the middle of a merge conflict"),
        ("cases = 3\n", "valid dictionary"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    """A file that cannot be used is refused in a sentence that names the place and what to do."""
    with pytest.raises(InputError, match=r"^[^\n]+$") as refusal:
        cases(tmp_path, text)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [('model = "7b"\nseq_len = "long"', "case a: seq_len = 'long'"), ('model = "nope"', "case a: "), ('model = ""', "no model")],
)
def test_wrong_words(tmp_path: Path, words: str, message: str) -> None:
    """A word that makes no sense is refused with the name of its case."""
    found = cases(tmp_path, f"[cases.a]\n{words}\n")
    with pytest.raises(InputError) as refusal:
        found.cases["a"].asked(tmp_path)
    assert message in str(refusal.value)
    assert "a" in str(refusal.value)
