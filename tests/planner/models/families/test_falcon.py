"""What is particular to Falcon: three architectures under one name, and only torch's own sdpa."""

from typing import Any

import families
import pytest
import traced

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling import family_matrix, small_models


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("falcon", {"num_kv_heads": 3}, "not a multiple of num_kv_heads=3"),
        ("falcon", {"parallel_attn": False}, "parallel_attn=false with new_decoder_architecture is not planned"),
        ("falcon-old", {"num_ln_in_parallel_attn": 2}, "needs new_decoder_architecture"),
        ("falcon-rw", {"num_kv_heads": 2}, "which Falcon cannot run"),
    ],
)
def test_configs_that_cannot_be(name: str, changes: dict[str, Any], message: str) -> None:
    """What the code of Falcon cannot run, or is not planned, is refused by key."""
    with pytest.raises(InputError, match=message):
        read_spec("x", ConfigReader(small_models.config(name, **changes), "config.json"))


@pytest.mark.parametrize("attention", ["eager", "flash"])
def test_other_attention_is_refused(attention: str) -> None:
    """Written-out attention and FlashAttention are not modelled, and the refusal says what to do."""
    with pytest.raises(InputError, match=f"attention={attention}: .* use sdpa, or plan trace"):
        traced.estimated(traced.Case(small_models.config("falcon"), settings=Settings(attention=attention)))


@pytest.mark.traced
def test_flash_cannot_be_traced() -> None:
    """A name that Falcon's own table of attention does not have is refused with what to use."""
    with pytest.raises(InputError, match="use sdpa or eager"):
        family_matrix.traced(small_models.load("falcon"), "full", Settings(attention="flash"))


@pytest.mark.parametrize(("name", "kernel"), [("falcon", "efficient"), ("falcon-old", "math"), ("falcon-rw", "efficient")])
def test_the_kernel_is_named(name: str, kernel: str) -> None:
    """A mask keeps FlashAttention out, and one head of keys for many of queries every fused kernel."""
    network, _ = traced.estimated(traced.Case(small_models.config(name)))
    assert network.notes["attention_kernel"] == kernel


@pytest.mark.traced
@pytest.mark.parametrize("name", ["falcon", "falcon-old", "falcon-rw"])
def test_a_cache_that_the_model_keeps(name: str) -> None:
    """Keys and values are copied into it, as many as attention sees."""
    model = small_models.load(name)
    settings = Settings(micro_batch_size=2, seq_len=256, gradient_checkpointing="off", use_cache=True)
    trained, peak = family_matrix.traced(model, "full", settings)
    network, memory = family_matrix.estimated(model, "full", settings)
    highest = max(memory.phases[phase].peak_bytes for phase in family_matrix.STEP_PHASES)
    assert trained == network.trainable_parameters
    assert peak == pytest.approx(highest, rel=families.PEAK_PERCENT / 100)


def test_a_quantized_base_stays_dense() -> None:
    """Its linear layers are no `nn.Linear` by type, so nothing is packed, and the report says so."""
    network, _ = traced.estimated(traced.Case(small_models.config("falcon"), "qlora"))
    assert not network.quantized
    assert "bitsandbytes quantizes nothing of Falcon" in network.notes["assumed"]
