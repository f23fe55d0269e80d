"""Spans of layers: indices, ranges and shares of the depth."""

import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.methods.layer_span import indices
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.training.settings import Settings

SPEC = read_spec(*load("Qwen/Qwen2.5-0.5B"))
SETTINGS = Settings(seq_len=16, gradient_checkpointing="off")


def trained(method: str) -> int:
    """Parameters that a method trains of a model of 24 layers."""
    return build(SPEC, parse(method), SETTINGS).trainable_parameters


@pytest.mark.parametrize(
    ("span", "expected"),
    [("7", [7]), ("0-3", [0, 1, 2, 3]), ("1/6-3/6", list(range(4, 12))), ("0/1-1/1", list(range(24))), ("23-23", [23])],
)
def test_spans(span: str, expected: list[int]) -> None:
    """Both ends of a range are in it; shares meet without a gap."""
    assert expected == list(indices(span, 24, "lora"))


@pytest.mark.parametrize("span", ["", "a", "3-1", "24", "1/2", "1/0-1/1", "0.5-1", "-1", "5/6-2/6", "0/2-4/2"])
def test_no_spans(span: str) -> None:
    """What names no layers of the model is an error that says how to write it."""
    with pytest.raises(InputError, match="layers="):
        indices(span, 24, "lora")


@pytest.mark.parametrize("part", ["lora", "ia3", "bottleneck_adapter", "prefix_tuning", "bitfit"])
def test_groups_of_layers_add_up(part: str) -> None:
    """Four groups of the depth, one after the other, train what all layers do; biases stand in layers alone."""
    groups = ("0/6-1/6", "1/6-3/6", "3/6-5/6", "5/6-6/6")
    assert trained(part) == sum(trained(f"{part}(layers={group})") for group in groups)


def test_spans_are_pefts_indices() -> None:
    """The same layers in PEFT's words."""
    assert trained("lora(layers_to_transform=0,1,2)") == trained("lora(layers=0-2)")


def test_strategies_of_s4_act_in_their_groups() -> None:
    """S4: LoRA in the outer groups, adapters in the first three, prefixes in the last three, biases in the last two."""
    parts = {part.label: part for part in parse("s4").for_depth(24).parts}
    of = {label: [int(i) for i in getattr(part, "layers_to_transform", ()) or part.layers] for label, part in parts.items()}  # type: ignore[attr-defined]
    assert [*range(4), *range(20, 24)] == of["lora"]
    assert list(range(20)) == of["bottleneck_adapter"]
    assert list(range(4, 24)) == of["prefix_tuning"]
    assert list(range(12, 24)) == of["bitfit"]
