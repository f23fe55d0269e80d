"""What is particular to Llama 4: kernels, adapters that PEFT cannot put on, and configs that are refused."""

from typing import Any

import pytest
import traced as side_by_side
from traced import Case

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.families import llama4
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import read_spec, suited
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling import small_models

pytestmark = pytest.mark.traced


def test_default_methods_name_targets() -> None:
    """LoRA's of all linear modules fails, so the defaults of `plan` name those that can be adapted; other methods stay."""
    spec = read_spec("x", ConfigReader(small_models.config("llama4_text"), "config.json"))
    names = suited(spec, ("full", "lora", "ia3"))
    assert names == ["full", f"lora(target_modules={','.join(llama4.ADAPTED)})", "ia3"]
    build(spec, parse(names[1]), Settings())


def test_eager_attention_and_a_kept_cache() -> None:
    """Masks of both kinds for eager attention; keys and values that are copied into a cache."""
    for changes in ({"attention": "eager"}, {"use_cache": True}):
        settings = Settings(micro_batch_size=2, seq_len=256, gradient_checkpointing="off", **changes)
        side_by_side.check(Case(small_models.config("llama4_text"), settings=settings))


@pytest.mark.parametrize(
    ("changes", "method", "settings", "message"),
    [
        ({}, "lora", {}, "peft wraps feed_forward.router"),
        ({}, "full", {"attention": "flash"}, "no FlashAttention for Llama 4"),
        ({"num_experts_per_tok": 5}, "full", {}, "num_experts_per_tok=5, but there are 4"),
        ({"no_rope_layers": [1]}, "full", {}, "'no_rope_layers' must be a list of 3"),
        ({"layer_types": ["sliding_attention"] * 3}, "full", {}, "'layer_types' must be a list of 3"),
        ({"moe_layers": "all"}, "full", {}, "'moe_layers' must be a list"),
        ({"interleave_moe_layer_step": 0, "moe_layers": None}, "full", {}, "interleave_moe_layer_step"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], method: str, settings: dict[str, Any], message: str) -> None:
    """Configs that make no sense, and what the libraries do not run, are refused with what to do."""
    config = ConfigReader(small_models.config("llama4_text", **changes), "config.json")
    with pytest.raises(InputError, match=message):
        build(read_spec("x", config), parse(method), Settings(**settings))
