"""Families beside Llama's against transformers: weights, and peaks against the traced code.

The tolerance is that of test_against_trace.py: 0.1 % of the allocated peak. Under gradient checkpointing the tables and the mask
of Gemma's full layers go with the backward of the first of these; the ledger keeps them to the end of the backward, which is
0.24 % of a model of 19 MB (`LOOSER`).
"""

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

import torch
import traced as side_by_side
from traced import Case, small

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling.build import transformers_model

pytestmark = pytest.mark.traced

PEAK_TOLERANCE = 0.001
LOOSER = {("gemma3_text", "qlora"): 0.003}
METHODS = ("full", "lora", "qlora", "prompt_tuning", "prefix_tuning")
SIZES = ((2, 256), (1, 64), (3, 100))
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma": small("gemma", head_dim=96),
    "gemma2": small("gemma2", head_dim=96, sliding_window=128),
    "gemma3_text": small("gemma3_text", head_dim=96, sliding_window=128, sliding_window_pattern=2),
    "olmo2": small("olmo2"),
    "phi3": small("phi3", pad_token_id=0),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_names_and_shapes_are_those_of_transformers(name: str) -> None:
    """Each weight has the name and the shape of transformers' own."""
    network, _ = side_by_side.estimated(Case(CONFIGS[name]))
    model = transformers_model(CONFIGS[name], "causal-lm", "eager", torch.bfloat16, "meta")

    assert {key: tuple(parameter.shape) for key, parameter in model.named_parameters()} == network.shapes()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CONFIGS)
def test_peaks(name: str, method: str) -> None:
    """Full, LoRA, QLoRA, prompts and prefixes, with and without checkpointing, at three sizes: peak and trained weights."""
    for batch, length in SIZES:
        for checkpointing in ("off",) if method == "prefix_tuning" else ("off", "non-reentrant"):
            settings = Settings(micro_batch_size=batch, seq_len=length, gradient_checkpointing=checkpointing)
            check(Case(CONFIGS[name], method, settings))


@pytest.mark.parametrize("method", ["full", "qlora"])
@pytest.mark.parametrize("name", CONFIGS)
def test_other_kernels(name: str, method: str) -> None:
    """Eager attention, FlashAttention, and a cache that the model keeps."""
    settings = Settings(micro_batch_size=2, seq_len=256, gradient_checkpointing="off")
    for changes in ({"attention": "eager"}, {"attention": "flash"}, {"use_cache": True}):
        check(Case(CONFIGS[name], method, replace(settings, **changes)))


def check(case: Case) -> None:
    """The highest phase, and the number of trained weights exactly."""
    network, memory = side_by_side.estimated(case)
    model, trace = side_by_side.traced(case)

    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == network.trainable_parameters
    highest = max(memory.phases[name].peak_bytes for name in trace.phases)
    tolerance = LOOSER.get((case.config["model_type"], case.method), PEAK_TOLERANCE)
    assert trace.peak_bytes == pytest.approx(highest, rel=tolerance)


def test_gemma_2_runs_eager_attention_where_sdpa_is_asked() -> None:
    """The report says so, and why."""
    network, _ = side_by_side.estimated(Case(CONFIGS["gemma2"]))
    assert network.notes["attention_kernel"] == "eager"
    assert network.notes["attention_kernel_reason"] == "sdpa cannot cap scores, so transformers runs Gemma 2 eagerly"


def test_layers_of_one_kind_are_one_run() -> None:
    """Windows that no sequence fills make all layers alike; otherwise the kinds alternate."""
    settings = Settings(seq_len=64, gradient_checkpointing="non-reentrant")
    short, _ = side_by_side.estimated(Case(CONFIGS["gemma3_text"], settings=settings))
    long, _ = side_by_side.estimated(Case(CONFIGS["gemma3_text"], settings=replace(settings, seq_len=256)))
    assert [run.count for run in short.runs] == [1, 4, 1]
    assert [run.count for run in long.runs] == [1, 1, 1, 1, 1, 1]
    assert long.runs[1].block is long.runs[3].block


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gemma2", {"layer_types": ["full_attention"]}, "'layer_types' must be a list of 4"),
        ("gemma2", {"layer_types": [[], 1, 2, 3]}, "'layer_types' must be a list of 4"),
        ("gemma", {"use_bidirectional_attention": True}, "is not a causal model"),
        ("phi3", {"partial_rotary_factor": 0.75}, "rotates a part of each head"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "cannot cap scores"),
    ],
)
def test_configs_that_cannot_be(name: str, changes: dict[str, Any], message: str) -> None:
    """What the families do not plan is refused by key."""
    with pytest.raises(InputError, match=message):
        read_spec("x", ConfigReader({**CONFIGS[name], **changes}, "config.json"))
