"""Published results: every line has a source, ratios follow from the figures, nothing is filled in."""

import csv
import io
from pathlib import Path

import pytest

from tuneplan.planner.errors import DataFileError
from tuneplan.planner.methods import evidence
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.methods.evidence import COLUMNS, Finding, findings, of, quality
from tuneplan.planner.methods.registry import names

ROWS = Path(__file__).parents[2] / "golden" / "published" / "peft_metamathqa.csv"


def finding(score: float | None, full: float | None) -> Finding:
    """A result with these scores."""
    return Finding("lora", "", "task", "model", "accuracy", score, full, None, None, "source", "words")


def test_every_result_has_a_task_a_model_a_metric_and_a_source() -> None:
    """A figure without a source is not evidence."""
    assert findings()
    for found in findings():
        assert all((found.task, found.model, found.metric, found.source)), found
        assert found.source.startswith("https://") or "arXiv:" in found.source, found


def test_scores_are_of_one_scale() -> None:
    """A score and that of full fine-tuning are in the same unit, so that no ratio is off by a hundred."""
    assert all(0 <= found.relative <= 1.5 for found in findings() if found.relative is not None)


def test_no_result_is_there_twice() -> None:
    """One line for each result."""
    keys = [(f.method, f.setting, f.task, f.model, f.metric, f.source, f.score) for f in findings()]
    assert len(set(keys)) == len(keys)


def test_the_ratio_is_score_over_full() -> None:
    """No ratio without both scores, and none over zero."""
    assert 0.9 == finding(45.0, 50.0).relative
    assert [None, None, None] == [finding(a, b).relative for a, b in ((None, 1.0), (1.0, None), (1.0, 0.0))]


def test_quality_is_the_median_and_the_range_of_ratios() -> None:
    """Results without figures do not count; without any there is no quality."""
    found = quality((finding(1.0, 2.0), finding(2.0, 2.0), finding(1.8, 2.0), finding(None, 2.0)))
    assert found is not None
    assert (3, 0.9, 0.5, 1.0) == (found.count, found.median, found.lowest, found.highest)
    assert quality((finding(None, None),)) is None


def test_options_do_not_matter_but_other_parts_do() -> None:
    """LoRA of any rank has LoRA's evidence; a composition without a name has none, and DoRA is not LoRA."""
    assert of(parse("lora")) == of(parse("lora(r=64,target_modules=q_proj)"))
    assert {"lora"} == {found.method for found in of(parse("lora"))}
    assert {"dora"} == {found.method for found in of(parse("lora(use_dora=true,r=32)"))}
    assert {"qlora"} == {found.method for found in of(parse("quantized_base+lora"))}
    assert () == of(parse("lora+ia3"))


def test_every_result_is_of_a_method_that_is_known() -> None:
    """A result under a name that nobody can type would never be shown."""
    assert {found.method for found in findings()} <= set(names())
    assert {"houlsby"} == {found.method for found in of(parse("houlsby(reduction_factor=8)"))}
    assert () == of(parse("pfeiffer"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": ""}, "line 2: no source"),
        ({"score": "about 3"}, "line 2: could not convert"),
        ({"score": "", "note": ""}, "line 2: neither a score nor a note"),
    ],
)
def test_a_broken_line_is_named(changes: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line without a source, with a score that is no number, or that says nothing is an error of the data."""
    line = {**dict.fromkeys(COLUMNS, "x"), "score": "1", "full_score": "2", "forgetting": "", "full_forgetting": "", **changes}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerow(line)
    broken = tmp_path / "evidence.csv"
    broken.write_text(text.getvalue(), encoding="utf-8")
    monkeypatch.setattr(evidence, "FILE", broken)
    with pytest.raises(DataFileError, match=words):
        findings.__wrapped__()


def test_other_columns_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with other columns is not read by guessing."""
    broken = tmp_path / "evidence.csv"
    broken.write_text("method,score\nlora,1\n", encoding="utf-8")
    monkeypatch.setattr(evidence, "FILE", broken)
    with pytest.raises(DataFileError, match="columns"):
        findings.__wrapped__()


def test_results_of_the_peft_comparison_are_those_published() -> None:
    """Accuracy and forgetting of each row that is quoted, to the digits that are kept."""
    with ROWS.open(encoding="utf-8", newline="") as lines:
        published = {row["source"]: row for row in csv.DictReader(lines)}
    quoted = [found for found in findings() if found.source in published]
    assert len(quoted) >= 15
    for found in quoted:
        row = published[found.source]
        assert round(float(row["test_accuracy"]), 4) == found.score
        assert round(float(row["forgetting"]), 4) == found.forgetting
