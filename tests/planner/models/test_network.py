"""Networks against transformers: every weight's name and shape, for every model of the catalog."""

import json
from typing import Any

import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.lookup import CatalogEntry, entries, load
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.training.settings import Settings

DISTINCT = list({entry.config_path.read_text(encoding="utf-8"): entry for entry in entries()}.values())


def network_of(name: str, method: str = "full") -> Network:
    """A catalogued model under a method."""
    spec = read_spec(*load(name))
    length = spec.fixed_length or (2048 if spec.image_tokens else min(512, spec.longest or 512))
    return build(spec, parse(method), Settings(seq_len=length, gradient_checkpointing="off"))


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.id)
def test_parameter_counts_of_the_catalog(entry: CatalogEntry) -> None:
    """Every catalogued model has exactly the parameters that transformers gives it."""
    assert entry.parameters == network_of(entry.id).total_parameters


@pytest.mark.parametrize("entry", DISTINCT, ids=lambda entry: entry.id)
def test_names_and_shapes_are_those_of_transformers(entry: CatalogEntry) -> None:
    """Each weight of the state dict, layer by layer, has the name and the shape of transformers' own."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tuneplan.profiling.build import task_of, transformers_model
    from tuneplan.profiling.subject import Subject

    config: dict[str, Any] = json.loads(entry.config_path.read_text(encoding="utf-8"))
    model = transformers_model(config, task_of(Subject(entry.id, config)), "eager", torch.bfloat16, "meta")

    assert {name: tuple(parameter.shape) for name, parameter in model.named_parameters()} == network_of(entry.id).shapes()


def test_adapter_of_the_reference_study() -> None:
    """Rank 8 on all dense layers of Llama 2 70B trains 103,546,880 parameters."""
    assert 103_546_880 == network_of("70b", "lora(r=8,target_modules=all-linear)").trainable_parameters


def test_unknown_family_says_so() -> None:
    """An architecture without a family is refused by name, not guessed."""
    config = ConfigReader({"model_type": "rwkv", "hidden_size": 64}, "config.json")
    with pytest.raises(InputError, match="model_type 'rwkv' is an architecture that tuneplan does not know yet"):
        read_spec("x", config)


def test_target_modules_that_match_nothing() -> None:
    """A target that no module's name ends in is an error that lists the modules."""
    with pytest.raises(InputError, match="target module 'query' matches nothing in this model; it has down_proj"):
        network_of("7b", "lora(target_modules=query)")


def test_rank_above_the_matrix() -> None:
    """A rank larger than a matrix allows is refused."""
    with pytest.raises(InputError, match=r"is larger than self_attn\.q_proj"):
        network_of("7b", "lora(r=5000,target_modules=q_proj)")
