"""`plan methods`: parts, presets and what they expand to."""

from typing import Any

import pytest

from tuneplan.planner.methods.registry import PARTS, PRESETS


def test_list_as_text_and_json(plan: Any) -> None:
    """Every part and preset is listed, each part with its summary and its paper."""
    document = plan("methods", "--json").json()
    assert (1, PRESETS) == (document["schema_version"], document["presets"])
    assert list(PARTS) == [part["name"] for part in document["parts"]]
    text = plan("methods").out
    for part in document["parts"]:
        assert part["summary"]
        assert f"{part['name']}: {part['summary']} [{part['paper']}]" in text


NOTHING_ALONE = ("quantized_base", "shifted_attention", "pruned_base", "small_model")


@pytest.mark.parametrize("name", [*PARTS, *PRESETS])
def test_show_prints_what_a_name_expands_to(plan: Any, name: str) -> None:
    """Each name's page says what it is made of, with every option; what it expands to means the same again."""
    if name in NOTHING_ALONE:
        outcome = plan("methods", "show", name)
        assert 2 == outcome.code
        assert "trains nothing by itself" in outcome.err
        return
    document = plan("methods", "show", name, "--json").json()
    result = plan("methods", "show", name)
    assert (0, "") == (result.code, result.err)
    assert f"{name} = {document['in_full']}" == result.out.splitlines()[0]
    again = plan("methods", "show", document["in_full"], "--json").json()
    assert document["parts"] == again["parts"]


def test_show_takes_a_composition(plan: Any) -> None:
    """A composition with options can be shown like a name."""
    document = plan("methods", "show", "quantized_base(quant_type=fp4)+lora(r=64)", "--json").json()
    assert "qlora(quant_type=fp4,r=64)" == document["name"]
    assert document["mergeable"]
    assert "rounds" in document["parts"][0]["merge_note"]
