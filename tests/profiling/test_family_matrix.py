"""The matrix of families: its file, its table, and refusals that must be what they say."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from tuneplan.planner.errors import InputError
from tuneplan.profiling import family_matrix, small_models
from tuneplan.profiling.family_matrix import Cell, Point, Row

LORA = Row(Cell("llama", "lora", "off"), (Point(1, 64, 999, 1000, 7, 7), Point(2, 64, 1001, 1000, 7, 7)))
PREFIX = Row(Cell("llama", "prefix_tuning", "off"), (Point(1, 64, 1000, 1000, 7, 7),))
CHECKPOINTED = Row(Cell("llama", "prefix_tuning", "non-reentrant"), refused="no prefix here")


def test_rows_read_back_and_rows_of_other_models_stay(tmp_path: Path) -> None:
    """Writing a model's rows replaces its old ones; a model without a file leaves."""
    path = tmp_path / "families.json"
    other = Row(Cell("gemma", "full", "off"), LORA.points)
    family_matrix.write([other, Row(Cell("gone", "full", "off"))], path)
    family_matrix.write([replace(LORA, points=()), PREFIX], path)
    family_matrix.write([LORA, CHECKPOINTED], path)

    assert [other, LORA, CHECKPOINTED] == family_matrix.read(path)


def test_the_table() -> None:
    """The error that is largest in size keeps its sign; a refused half is marked, a refused method is a dash."""
    table = family_matrix.render([LORA, PREFIX, CHECKPOINTED])

    assert "| llama | - | -0.1000 % | - | - | +0.0000 % * |" in table.splitlines()
    assert "- prefix_tuning: no prefix here (llama checkpointed)" in table.splitlines()
    assert table.startswith("1 small models, 3 steps.")


@pytest.mark.traced
def test_a_refusal_that_does_not_happen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model's file cannot hide a cell that the real code runs."""
    model = replace(small_models.load("llama"), refuses={"lora": "because"})
    monkeypatch.setattr(small_models, "load", lambda name: model)

    with pytest.raises(InputError, match="the real code runs this"):
        family_matrix.run(Cell("llama", "lora", "off"))
