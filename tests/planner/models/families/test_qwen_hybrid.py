"""What is particular to Qwen3-Next and Qwen3.5: kernels, heads that are not repeated, and what is refused."""

from typing import Any

import pytest
import traced as side_by_side
from traced import Case

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling import small_models

pytestmark = pytest.mark.traced
RUN = {"micro_batch_size": 2, "seq_len": 256, "gradient_checkpointing": "off"}


@pytest.mark.parametrize("changes", [{"attention": "eager"}, {"attention": "flash"}, {"padded": True}])
def test_other_kernels(changes: dict[str, Any]) -> None:
    """Eager attention, FlashAttention, and padding, which linear attention multiplies away."""
    settings = Settings(**{**RUN, **changes})
    side_by_side.check(Case(small_models.config("qwen3_5_text"), settings=settings))


@pytest.mark.parametrize(("name", "method"), [("qwen3_next", "qlora"), ("qwen3_5_text", "qlora"), ("qwen3_next", "full")])
def test_as_many_key_heads_as_value_heads(name: str, method: str) -> None:
    """Then heads are not repeated, and what is fp32 already keeps the layout of the convolution."""
    config = small_models.config(name, linear_num_value_heads=4)
    side_by_side.check(Case(config, method, Settings(**RUN)))


def test_the_report_says_which_linear_attention_runs() -> None:
    """That of torch; the package that replaces it is named."""
    spec = read_spec("x", ConfigReader(small_models.config("qwen3_5_moe_text"), "config.json"))
    assert "flash-linear-attention" in spec.note
    assert build(spec, parse("full"), Settings()).notes["linear_attention"] == "torch"


@pytest.mark.parametrize(
    ("name", "changes", "settings", "message"),
    [
        ("qwen3_5_text", {"layer_types": ["full_attention"]}, {}, "'layer_types' must be a list of 2"),
        ("qwen3_5_text", {"layer_types": None, "full_attention_interval": 0}, {}, "full_attention_interval"),
        ("qwen3_5_text", {"linear_num_value_heads": 6}, {}, "linear_num_value_heads=6 is not a multiple"),
        ("qwen3_5_text", {"linear_key_head_dim": "48"}, {}, "linear_key_head_dim"),
        ("qwen3_5_text", {}, {"use_cache": True}, "a cache that is kept in training"),
        ("qwen3_5_moe_text", {"num_experts_per_tok": 17}, {}, "num_experts_per_tok=17, but there are 16"),
        ("qwen3_next", {"mlp_only_layers": "0"}, {}, "'mlp_only_layers' must be a list"),
    ],
)
def test_what_cannot_be(name: str, changes: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    """Configs that make no sense, and a cache, which holds states."""
    config = ConfigReader(small_models.config(name, **changes), "config.json")
    with pytest.raises(InputError, match=message):
        build(read_spec("x", config), parse("full"), Settings(gradient_checkpointing="off", **settings))
