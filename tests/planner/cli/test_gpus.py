"""`plan gpus`: cards, instances and prices."""

from typing import Any

from tuneplan.hardware_profiles.loader import load_gpus
from tuneplan.planner.units import format_gib


def test_list_as_text_and_json(plan: Any) -> None:
    """Every card is listed; each figure of the JSON carries its source, date and quotation."""
    listed = plan("gpus", "--json").json()
    assert 1 == listed["schema_version"]
    assert list(load_gpus()) == [gpu["id"] for gpu in listed["gpus"]]
    for gpu in listed["gpus"]:
        for figure in gpu["figures"].values():
            assert {"value", "source", "date", "quote"} == set(figure)
            assert figure["source"]
    text = plan("gpus").out
    assert format_gib(load_gpus()["h200"].memory_bytes) in text


def test_show_a_card(plan: Any) -> None:
    """A card's page has every figure with its quotation, and its offers with their dates."""
    document = plan("gpus", "show", "A100_80G", "--json").json()
    assert ("a100-80g", 1) == (document["id"], document["schema_version"])
    assert document["offers"]
    text = plan("gpus", "show", "a100-80g").out
    for figure in document["figures"].values():
        assert figure["quote"] in text


def test_show_an_instance(plan: Any) -> None:
    """An instance's page says what is in it and what it costs."""
    document = plan("gpus", "show", "P4DE.24xlarge", "--json").json()
    assert ("p4de.24xlarge", "a100-80g", 8) == (document["id"], document["gpu"], document["gpu_count"])
    for offer in document["offers"]:
        assert "p4de.24xlarge" == offer["instance"]
        assert offer["date"] or offer["date_note"]
        assert f"${offer['usd_per_hour']:,.2f}/h" in plan("gpus", "show", "p4de.24xlarge").out
