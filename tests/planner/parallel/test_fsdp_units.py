"""Units of FSDP2: torch's own recipe with one root, and those that accelerate carves out of it."""

from typing import Any

import pytest

from tuneplan.planner.errors import UnknownNameError
from tuneplan.planner.graph.tensor import GRADIENTS, OPTIMIZER_STATES, WEIGHTS
from tuneplan.planner.memory import StepMemory, step_memory
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.parallel.shards import accelerate_units
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 16384,
}
RUN = Settings(seq_len=64, gradient_checkpointing="off")
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def network(method: str, tied: bool = False) -> Network:
    """Three layers under embedding and head that are larger than they are."""
    return build(read_spec("tiny", ConfigReader({**CONFIG, "tie_word_embeddings": tied}, "tiny")), parse(method), RUN)


@pytest.mark.parametrize(
    ("method", "tied", "expected"),
    [
        ("full", False, ([EMBEDDING], [NORM, HEAD], [])),
        ("lora", False, ([EMBEDDING], [HEAD], [NORM])),
        ("full", True, ([], [EMBEDDING, NORM], [])),
        ("lora", True, ([], [EMBEDDING], [NORM])),
    ],
)
def test_what_accelerate_carves_out(method: str, tied: bool, expected: tuple[list[str], ...]) -> None:
    """The embedding, a tail of norm and head, and the root's rest, as read from accelerate 1.15's `fsdp2_prepare_model`."""
    members, rest, tail = accelerate_units(network(method, tied))
    assert expected == tuple([p.name for p in unit] for unit in (members[0], members[-1], rest))
    end = len(members) - 1
    assert (0 if tied else end, end) == tail


def memory(method: str, units: str, stage: int = 3, tied: bool = False) -> StepMemory:
    """One of two ranks."""
    return step_memory(network(method, tied), RUN, OPTIMIZERS["adamw_fused"], Sharding(2, stage, units=units))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("method", ["full", "lora", "lora(layers_to_transform=2)"])
def test_every_gathered_unit_goes_again(method: str, stage: int, tied: bool) -> None:
    """After the backward there are weights, states and gradients alone, whatever the units and wherever gradients end."""
    levels = memory(method, "accelerate", stage, tied).phases["optimizer_step"].levels
    held = sum(levels[kind] for kind in (WEIGHTS, GRADIENTS, OPTIMIZER_STATES))
    assert held == memory(method, "accelerate", stage, tied).phases["backward"].end_bytes


def test_the_embedding_does_not_stay() -> None:
    """In a root of torch's own it stands whole beside the loss; as a unit it is gone when the first layer runs."""
    root, own = (memory("full", units).phases["backward"].peak_bytes for units in ("root", "accelerate"))
    assert own < root - 2 * CONFIG["vocab_size"] * CONFIG["hidden_size"]


def test_units_that_do_not_exist() -> None:
    """A wrong word names the right ones."""
    with pytest.raises(UnknownNameError, match="accelerat"):
        Sharding(2, 3, units="accelerat").check()
