"""Parts that PEFT does not have, against plain PyTorch written from their papers (tests/support/reference.py)."""

from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from other_models import narrow_config
from traced import Case, check, small

from tuneplan.planner.memory import step_memory
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.training.optimizers import OPTIMIZERS, state_bytes
from tuneplan.planner.training.settings import Settings

pytestmark = pytest.mark.traced

BASE = Settings(micro_batch_size=2, seq_len=256, gradient_checkpointing="off")

OFFSITE = "offsite_tuning(adapter_layers=1,emulator_layers=3)"
METHODS = (
    "houlsby",
    "parallel_adapter",
    "bottleneck_adapter(skip_layers=2)",
    "compacter",
    "compacter_plus",
    "ssf",
    "sora",
    "qa_lora",
    "diff_pruning",
    "s_diff_pruning",
    "bitdelta",
    "peqa",
    "trained_kinds",
    "sparse_adapter",
    "propetl",
    "longlora",
    "lomo",
    "lisa",
    "partial_layers(top=2)",
    "partial_layers(top=2,head=true)",
)


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@pytest.mark.parametrize("checkpointing", ["off", "non-reentrant"])
@pytest.mark.parametrize("method", METHODS)
def test_methods_on_two_families(method: str, checkpointing: str, model_type: str) -> None:
    """Each method with and without gradient checkpointing; phases within 1 %, the peak within 0.1 %."""
    check(Case(small(model_type), method, replace(BASE, gradient_checkpointing=checkpointing)), phases=0.01)


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@pytest.mark.parametrize("method", ["side_tuning", "lst", "lst(reduction_factor=4)", "res_tuning", "ipa"])
def test_networks_beside_a_frozen_model(method: str, model_type: str) -> None:
    """The backward goes through the side network alone; what it read of the model is kept."""
    check(Case(small(model_type), method, BASE))


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@pytest.mark.parametrize("method", ["reversible", "meft"])
def test_reversible_layers(method: str, model_type: str) -> None:
    """Inputs are computed from outputs in the backward, and nothing of a layer is kept."""
    check(Case(small(model_type), method, BASE))


def test_reversible_layers_with_the_adapter_first() -> None:
    """MEFT2; 2 %: the input is counted from the start of a layer's backward, here before it is there: one hidden state."""
    check(Case(small(), "reversible(f_arch=adapter)", BASE), tolerance=0.02, phases=0.02)


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@pytest.mark.parametrize("checkpointing", ["off", "non-reentrant"])
@pytest.mark.parametrize("method", ["splora", "loraprune(ratio=0.25)", "pruned_base(moment=end)+lora", OFFSITE, "peft_plug_in"])
def test_steps_of_another_model(method: str, checkpointing: str, model_type: str) -> None:
    """Masked and cut layers, a shortened middle, a narrow model; the masks, a number a row, are not counted (0.09 %)."""
    config = small(model_type, num_hidden_layers=6 if method == OFFSITE else 3)
    real = narrow_config(config, 4) if method == "peft_plug_in" else None
    check(Case(config, method, replace(BASE, gradient_checkpointing=checkpointing), real=real), phases=0.01)


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@pytest.mark.parametrize("options", ["example_tokens=128", "example_tokens=512,hyper_layers=2,num_virtual_tokens=40"])
def test_a_model_that_writes_prefixes(options: str, model_type: str) -> None:
    """The hypermodel's whole forward stands before the frozen model's; its gradients come last."""
    check(Case(small(model_type), f"hypertuning({options})", BASE))


def test_galore_keeps_states_of_the_rank() -> None:
    """For a weight of m x n: two states of r x n and a projection of m x r; norms and embeddings keep whole states."""
    spec = read_spec("test", ConfigReader(small(num_hidden_layers=1), "test"))
    network = build(spec, parse("galore(rank=16)"), BASE)
    weight = next(p for p in network.parameters if p.name.endswith("up_proj.weight"))
    assert 2 * 2 * 16 * 1376 + 2 * 512 * 16 == state_bytes(OPTIMIZERS["adamw_fused"], [weight], False).device
    whole = build(spec, parse("full"), BASE)
    ours, theirs = (step_memory(n, BASE, OPTIMIZERS["adamw"]).phases["optimizer_step"] for n in (network, whole))
    assert ours.peak_bytes < theirs.peak_bytes
