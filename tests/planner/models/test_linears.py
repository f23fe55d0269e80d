"""The weight matrices of a model's layers."""

from tuneplan.planner.models.linears import Linear, linears
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.registry import read_spec


def of(name: str) -> list[Linear]:
    """Those of a catalogued model."""
    return linears(read_spec(*load(name)))


def test_layers_of_a_llama() -> None:
    """Seven a layer, in the order of the state dict; grouped heads make k and v smaller; embedding and head are left out."""
    found = of("8b")
    assert ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"] == [one.module for one in found]
    assert Linear("k_proj", 1024, 4096, 32) == found[1]
    assert 7 * 32 == sum(one.count for one in found)


def test_few_positions() -> None:
    """A model with few learned positions is read too; its layers' matrices lie as its state dict has them."""
    assert {(768, 768), (768, 3072), (3072, 768), (768, 2304)} == {(one.out_features, one.in_features) for one in of("gpt2")}
