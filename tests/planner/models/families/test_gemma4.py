"""What is particular to Gemma 4: kernels, shared keys, inputs of each layer, and configs that are refused."""

from typing import Any

import families
import pytest
import traced as side_by_side
from traced import Case

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import has_flash, read_spec
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling import small_models

pytestmark = pytest.mark.traced


def test_other_kernels() -> None:
    """Eager attention, FlashAttention, and a cache that the model keeps, which layers that share keys do not fill again."""
    families.check_kernels("gemma4_text-edge")


def test_a_recomputed_layer_leaves_its_shared_keys_behind() -> None:
    """Under checkpointing the layers whose keys others read keep the graph of these keys to the end, as in the trace."""
    settings = Settings(micro_batch_size=2, seq_len=256, gradient_checkpointing="non-reentrant")
    case = Case(small_models.config("gemma4_text-edge"), "lora", settings)
    network, _ = side_by_side.estimated(case)
    side_by_side.check(case)
    assert [bool(run.block.left) for run in network.runs] == [False, True, True, False, False, False]


def test_reentrant_checkpoints_share_keys_without_a_graph() -> None:
    """Layers that read an earlier layer's keys then send no gradient to it."""
    settings = Settings(micro_batch_size=2, seq_len=256, gradient_checkpointing="reentrant")
    side_by_side.check(Case(small_models.config("gemma4_text-edge"), "lora", settings))


def test_heads_that_flash_attention_does_not_take() -> None:
    """Those of the published models' full attention: an error, and no advice to use it."""
    spec = read_spec("x", ConfigReader(small_models.config("gemma4_text", global_head_dim=512), "config.json"))
    assert not has_flash(spec)
    with pytest.raises(InputError, match="heads of 512, and FlashAttention-2 takes at most 256"):
        build(spec, parse("full"), Settings(attention="flash"))


def test_the_text_model_of_a_config_with_images() -> None:
    """Its text section is planned, and the report says what lies beside it."""
    config = {"model_type": "gemma4", "text_config": small_models.config("gemma4_text")}
    spec = read_spec("x", ConfigReader(config, "config.json"))
    assert spec.model_type == "gemma4_text"
    assert "vision and audio towers beside it" in spec.note


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gemma4_text", {"layer_types": ["full_attention"]}, "'layer_types' must be a list of 2"),
        ("gemma4_text", {"use_bidirectional_attention": "all"}, "is not a causal model"),
        ("gemma4_text", {"use_bidirectional_attention": 3}, "use_bidirectional_attention"),
        ("gemma4_text", {"global_head_dim": 33}, "global_head_dim=33 is odd"),
        ("gemma4_text", {"num_global_key_value_heads": 3}, "not a multiple of num_global_key_value_heads=3"),
        ("gemma4_text", {"num_kv_shared_layers": 1}, "num_kv_shared_layers=1 of 2"),
        ("gemma4_text", {"num_kv_shared_layers": -1}, "num_kv_shared_layers"),
        ("gemma4_text", {"final_logit_softcapping": "30"}, "final_logit_softcapping"),
        ("gemma4_text-moe", {"top_k_experts": 17}, "top_k_experts=17, but there are 16"),
        ("gemma4_text-moe", {"num_experts": None}, "num_experts"),
    ],
)
def test_configs_that_cannot_be(name: str, changes: dict[str, Any], message: str) -> None:
    """What makes no sense, or is not planned, is refused by key."""
    with pytest.raises(InputError, match=message):
        read_spec("x", ConfigReader(small_models.config(name, **changes), "config.json"))


def test_side_networks_are_refused() -> None:
    """They would have to share keys and inputs of each layer as the layers do."""
    spec = read_spec("x", ConfigReader(small_models.config("gemma4_text"), "config.json"))
    with pytest.raises(InputError, match="is not modelled for Gemma 4"):
        build(spec, parse("lst"), Settings(gradient_checkpointing="off"))
