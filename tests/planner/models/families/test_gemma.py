"""What is particular to Gemma: kernels, kinds of layers, and configs that are refused."""

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


@pytest.mark.parametrize("length", [64, 256])
def test_kinds_of_layers_alternate(length: int) -> None:
    """Each has rotary tables of its own, even where no sequence fills the window; layers of one kind are recorded once."""
    settings = Settings(seq_len=length, gradient_checkpointing="non-reentrant")
    network, _ = side_by_side.estimated(Case(small_models.config("gemma3_text"), settings=settings))
    blocks = [run.block for run in network.runs]
    assert [run.count for run in network.runs] == [1, 1, 1, 1, 1, 1]
    assert (blocks[1] is blocks[3], blocks[2] is blocks[4], blocks[1] is blocks[2]) == (True, True, False)


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
