"""What is common to the dense decoders: the other kernels, and configs that are refused."""

from typing import Any

import families
import pytest
import traced

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.replay import replay
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling import small_models

pytestmark = pytest.mark.traced


@pytest.mark.parametrize("name", ["phi", "gpt2", "opt", "gpt_neox", "cohere2", "olmo", "glm4", "exaone4"])
def test_other_kernels(name: str) -> None:
    """Eager attention, FlashAttention, and a cache that the model keeps."""
    families.check_kernels(name)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn is not planned"),
        ("gpt2", {"n_head": 7}, "n_embd=512 is not a multiple of n_head=7"),
        ("opt", {"layerdrop": 0.1}, "layerdrop skips layers at random"),
        ("phi", {"partial_rotary_factor": 1.5}, "must be from 0.0 to 1.0"),
        ("stablelm", {"qk_layernorm": True}, "has a norm for each head"),
        ("cohere2", {"layer_types": ["full_attention"]}, "'layer_types' must be a list of 4"),
        ("smollm3", {"no_rope_layers": [1, 2]}, "'no_rope_layers' must be a list of 2"),
        ("smollm3", {"use_sliding_window": True}, "use_sliding_window is not planned"),
        ("bloom", {"slow_but_exact": True, "pretraining_tp": 4}, "slow_but_exact is not planned"),
        ("gpt_bigcode", {"add_cross_attention": True}, "add_cross_attention is not planned"),
        ("phi", {"hidden_act": "snake"}, "an activation that tuneplan does not know"),
    ],
)
def test_configs_that_cannot_be(name: str, changes: dict[str, Any], message: str) -> None:
    """What the families do not plan is refused by key."""
    with pytest.raises(InputError, match=message):
        read_spec("x", ConfigReader(small_models.config(name, **changes), "config.json"))


@pytest.mark.parametrize("name", ["phi", "gpt2", "opt", "gpt_neox", "cohere2", "olmo", "bloom", "mpt", "gpt_bigcode", "glm4"])
@pytest.mark.parametrize("method", ["full", "qlora"])
def test_every_birth_has_one_death(name: str, method: str) -> None:
    """The allocator's replay finds each block that is freed."""
    for checkpointing in ("off", "non-reentrant"):
        settings = Settings(micro_batch_size=2, seq_len=256, gradient_checkpointing=checkpointing)
        network, memory = traced.estimated(traced.Case(small_models.config(name), method, settings))
        replayed = replay(network, settings, OPTIMIZERS["adamw"])
        assert replayed.reserved_bytes >= memory.peak.peak_bytes


@pytest.mark.parametrize(("name", "most"), [("gpt2", 1024), ("opt", 2048), ("gpt_bigcode", 1024)])
def test_sequences_beyond_learned_positions_are_refused(name: str, most: int) -> None:
    """The table of positions has no row for them, so that the real code fails too."""
    case = traced.Case(small_models.config(name), settings=Settings(seq_len=most + 1))
    with pytest.raises(InputError, match=f"use --seq-len {most} or less"):
        traced.estimated(case)
    traced.estimated(traced.with_settings(case, seq_len=most))


@pytest.mark.parametrize("name", ["bloom", "mpt"])
def test_architectures_with_written_out_attention_alone(name: str) -> None:
    """Sdpa is run eagerly and the report says so; FlashAttention is refused."""
    network, _ = traced.estimated(traced.Case(small_models.config(name)))
    assert network.notes["attention_kernel"] == "eager"
    with pytest.raises(InputError, match="transformers has no FlashAttention for"):
        traced.estimated(traced.Case(small_models.config(name), settings=Settings(attention="flash")))


def test_a_window_as_long_as_the_sequences_needs_a_mask() -> None:
    """As in the real code, which so runs the memory-efficient kernel; one token less and flash runs."""
    config = small_models.config("mistral", sliding_window=256)
    settings = Settings(micro_batch_size=2, seq_len=256, gradient_checkpointing="off")
    traced.check(traced.Case(config, settings=settings))
    network, _ = traced.estimated(traced.Case(config, settings=settings))
    shorter, _ = traced.estimated(traced.Case(config, settings=Settings(micro_batch_size=2, seq_len=255)))
    assert ("efficient", "flash") == (network.notes["attention_kernel"], shorter.notes["attention_kernel"])
