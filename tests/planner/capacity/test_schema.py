"""The published JSON Schema is the one of the classes."""

import json
from pathlib import Path

from tuneplan.planner.capacity.schema import SECTIONS, json_schema

DOCS = Path(__file__).parents[3] / "docs"


def test_the_published_schema_is_up_to_date() -> None:
    """`python docs/workloads_schema.py` writes it again."""
    assert json_schema() == json.loads((DOCS / "schemas" / "workloads.json").read_text())


def test_every_key_is_described() -> None:
    """Editors show a sentence for each key, and the guide names each."""
    guide = (DOCS / "capacity.md").read_text()
    for model in SECTIONS.values():
        for name, field in model.model_fields.items():
            assert field.description, name
            assert f"`{name}`" in guide, name
