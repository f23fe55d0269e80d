"""What is particular to GPT-J, CodeGen and GPT-Neo: scores in fp32, written out, because transformers has no sdpa for them."""

from typing import Any

import families
import pytest
import traced

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling import family_matrix, small_models

NAMES = ["gptj", "codegen", "gpt_neo"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gptj", {"rotary_dim": 128}, "rotary_dim=128 of heads of 64"),
        ("gptj", {"rotary_dim": 7}, "cannot be rotated in pairs"),
        ("codegen", {"n_head": 2}, "n_head=2 is not a multiple of 4"),
        ("gpt_neo", {"num_layers": 3}, "attention_types are of 2 layers and num_layers=3"),
        ("gpt_neo", {"attention_types": [[["all"], 2]]}, "attention_types must be like"),
        ("gpt_neo", {"attention_types": 5}, "attention_types must be like"),
    ],
)
def test_configs_that_cannot_be(name: str, changes: dict[str, Any], message: str) -> None:
    """What the code of these models cannot run is refused by key."""
    with pytest.raises(InputError, match=message):
        read_spec("x", ConfigReader(small_models.config(name, **changes), "config.json"))


@pytest.mark.parametrize("name", NAMES)
def test_sdpa_is_written_out_and_flash_refused(name: str) -> None:
    """The report says what runs where sdpa is asked; FlashAttention is not modelled."""
    network, _ = traced.estimated(traced.Case(small_models.config(name), settings=Settings(seq_len=512)))
    assert network.notes["attention_kernel"] == "eager"
    assert "transformers has no sdpa for" in network.notes["attention_kernel_reason"]
    with pytest.raises(InputError, match="attention=flash: tuneplan has only the written-out attention"):
        traced.estimated(traced.Case(small_models.config(name), settings=Settings(seq_len=512, attention="flash")))


@pytest.mark.parametrize("name", NAMES)
def test_sequences_beyond_the_positions_are_refused(name: str) -> None:
    """Tables of positions end, be they learned or not."""
    with pytest.raises(InputError, match="use --seq-len 512 or less"):
        traced.estimated(traced.Case(small_models.config(name), settings=Settings(seq_len=513)))


@pytest.mark.traced
@pytest.mark.parametrize("name", NAMES)
def test_a_cache_that_the_model_keeps(name: str) -> None:
    """Keys and values come out of it contiguously, so that products need no copies of them."""
    model = small_models.load(name)
    settings = Settings(micro_batch_size=2, seq_len=256, gradient_checkpointing="off", use_cache=True)
    trained, peak = family_matrix.traced(model, "full", settings)
    network, memory = family_matrix.estimated(model, "full", settings)
    highest = max(memory.phases[phase].peak_bytes for phase in family_matrix.STEP_PHASES)
    assert trained == network.trainable_parameters
    assert peak == pytest.approx(highest, rel=families.PEAK_PERCENT / 100)
