"""What is particular to hybrids with Mamba 2 layers: kernels, padding, adapters that PEFT refuses, configs that are refused."""

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
@pytest.mark.parametrize("name", ["granitemoehybrid-dense", "nemotron_h"])
def test_other_kernels(name: str, changes: dict[str, Any]) -> None:
    """Eager attention, FlashAttention, and padding, which layers with a state multiply away."""
    side_by_side.check(Case(small_models.config(name), settings=Settings(**{**RUN, **changes})))


@pytest.mark.parametrize("changes", [{"mamba_n_groups": 1}, {"mamba_n_groups": 16}])
def test_groups_of_heads(changes: dict[str, Any]) -> None:
    """All heads in one group, and each in its own."""
    config = small_models.config("granitemoehybrid-dense", **changes)
    side_by_side.check(Case(config, "lora", Settings(**RUN)))


def test_experts_in_a_narrower_space() -> None:
    """Nemotron 3's larger models project the tokens before the routed experts, and back."""
    side_by_side.check(Case(small_models.config("nemotron_h", moe_latent_size=192), settings=Settings(**RUN)))


def test_names_of_layers() -> None:
    """A pattern and both lists are the same model."""
    config = small_models.config("nemotron_h")
    del config["hybrid_override_pattern"]
    listed = {"layers_block_type": ["mamba", "moe", "attention", "mlp"]}
    named = {"layer_types": ["linear_attention", "moe", "full_attention", "mlp"]}
    specs = [read_spec("x", ConfigReader({**config, **more}, "x")) for more in (listed, named)]
    assert specs == [read_spec("x", ConfigReader(small_models.config("nemotron_h"), "x"))] * 2


def test_the_report_says_which_scan_runs() -> None:
    """That of torch; the package that replaces it is named."""
    spec = read_spec("x", ConfigReader(small_models.config("nemotron_h"), "config.json"))
    assert "mamba-ssm" in spec.note
    assert build(spec, parse("full"), Settings()).notes["state_space"] == "torch"


@pytest.mark.parametrize(
    ("name", "changes", "method", "settings", "message"),
    [
        ("nemotron_h", {}, "lora", {}, "peft refuses lora on out_proj"),
        ("nemotron_h", {}, "full", {"use_cache": True}, "a cache that is kept in training"),
        ("nemotron_h", {"hybrid_override_pattern": "MX"}, "full", {}, "'hybrid_override_pattern' must be a list"),
        ("nemotron_h", {"hybrid_override_pattern": None}, "full", {}, "'layer_types' must be a list of layers"),
        ("nemotron_h", {"n_groups": 3}, "full", {}, "16 heads of the state do not fall into 3 groups"),
        ("nemotron_h", {"num_experts_per_tok": 17}, "full", {}, "num_experts_per_tok=17, but there are 16"),
        ("nemotron_h", {"n_group": 5}, "full", {}, "n_group=5 does not part the 16 experts"),
        ("granitemoehybrid", {"layer_types": ["mamba"]}, "full", {}, "'layer_types' must be a list of 2"),
        ("granitemoehybrid", {"mamba_n_heads": 15}, "full", {}, "mamba_n_heads=15 of 68 columns"),
        ("granitemoehybrid", {"mamba_d_head": 63}, "full", {}, "mamba_n_heads=16 of 63 columns"),
        ("granitemoehybrid", {"num_experts_per_tok": 0}, "full", {}, "num_experts_per_tok=0, but there are 16"),
        ("granitemoehybrid", {"position_embedding_type": "alibi"}, "full", {}, "position_embedding_type 'alibi'"),
    ],
)
def test_what_cannot_be(name: str, changes: dict[str, Any], method: str, settings: dict[str, Any], message: str) -> None:
    """Configs that make no sense, and what the libraries do not run, are refused with what to do."""
    config = ConfigReader(small_models.config(name, **changes), "config.json")
    with pytest.raises(InputError, match=message):
        build(read_spec("x", config), parse(method), Settings(gradient_checkpointing="off", **settings))
