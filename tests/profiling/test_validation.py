"""The validation suite: every case estimated and traced, and the published table is what this code gives."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.lookup import find
from tuneplan.planner.models.registry import read_spec
from tuneplan.profiling import validation
from tuneplan.profiling.validation import Case, Row

DOCS = Path(__file__).parents[2] / "docs"
PEAK_PERCENT = 0.5
PHASE_PERCENT = 1.1
PUBLISHED = {row.case: row for row in validation.read(DOCS / "accuracy" / "small.json")}


@pytest.mark.traced
@pytest.mark.parametrize("case", validation.small_cases(), ids=str)
def test_estimated_against_traced(case: Case) -> None:
    """The peak within 0.5 %, each phase within 1.1 %, as published.

    In models of 20 MB one hidden state more is 0.5 %. The worst phase is the backward of frozen lower layers under checkpointing,
    1.0 % low; the cause is not known.
    """
    row = validation.run(case)

    assert abs(row.percent) < PEAK_PERCENT
    for name, traced in row.traced.items():
        assert abs(validation.error(row.estimated[name], traced)) < PHASE_PERCENT, name
    assert row == PUBLISHED[case]


def test_every_published_case_is_run() -> None:
    """The table has the suite's cases and no other."""
    assert set(validation.small_cases()) == set(PUBLISHED)


def test_the_page_shows_the_results() -> None:
    """docs/accuracy.md is rendered from the results beside it."""
    page = (DOCS / "accuracy.md").read_text(encoding="utf-8")

    assert page == validation.rendered(page, DOCS / "accuracy")


def test_large_results_are_of_this_planner() -> None:
    """Estimates of real models, recomputed: the published table of the large cases is not of an older ledger."""
    for row in validation.read(DOCS / "accuracy" / "large.json"):
        assert row.estimated == validation.estimate(row.case)[1]


def test_large_cases_are_models_of_the_catalog() -> None:
    """Each names a model that can be read."""
    for case in validation.large_cases():
        config = json.loads(find(case.model).config_path.read_text(encoding="utf-8"))
        assert read_spec(case.model, ConfigReader(config, case.model)).num_hidden_layers == config["num_hidden_layers"]


def test_a_row_reads_back(tmp_path: Path) -> None:
    """Rows survive the file."""
    row = Row(Case("llama", "lora"), "flash", {"forward": 1}, {"forward": 2})
    validation.write([row], tmp_path / "rows.json")

    assert [row] == validation.read(tmp_path / "rows.json")
