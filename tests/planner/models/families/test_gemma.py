"""What is particular to Gemma: kernels, kinds of layers, and configs that are refused."""

from dataclasses import replace
from typing import Any

import families
import pytest
import traced as side_by_side
from traced import Case

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling import small_models

pytestmark = pytest.mark.traced


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3_text"])
def test_other_kernels(name: str) -> None:
    """Eager attention, FlashAttention, and a cache that the model keeps."""
    families.check_kernels(name)


def test_gemma_2_runs_eager_attention_where_sdpa_is_asked() -> None:
    """The report says so, and why."""
    network, _ = side_by_side.estimated(Case(small_models.config("gemma2")))
    assert network.notes["attention_kernel"] == "eager"
    assert network.notes["attention_kernel_reason"] == "sdpa cannot cap scores, so transformers runs Gemma 2 eagerly"


def test_layers_of_one_kind_are_one_run() -> None:
    """Windows that no sequence fills make all layers alike; otherwise the kinds alternate."""
    config = small_models.config("gemma3_text")
    settings = Settings(seq_len=64, gradient_checkpointing="non-reentrant")
    short, _ = side_by_side.estimated(Case(config, settings=settings))
    long, _ = side_by_side.estimated(Case(config, settings=replace(settings, seq_len=256)))
    assert [run.count for run in short.runs] == [1, 4, 1]
    assert [run.count for run in long.runs] == [1, 1, 1, 1, 1, 1]
    assert long.runs[1].block is long.runs[3].block


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gemma2", {"layer_types": ["full_attention"]}, "'layer_types' must be a list of 4"),
        ("gemma2", {"layer_types": [[], 1, 2, 3]}, "'layer_types' must be a list of 4"),
        ("gemma", {"use_bidirectional_attention": True}, "is not a causal model"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "cannot cap scores"),
    ],
)
def test_configs_that_cannot_be(name: str, changes: dict[str, Any], message: str) -> None:
    """What the family does not plan is refused by key."""
    with pytest.raises(InputError, match=message):
        read_spec("x", ConfigReader(small_models.config(name, **changes), "config.json"))
