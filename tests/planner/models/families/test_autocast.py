"""CUDA autocast (`TrainingArguments(bf16=True)`) on families with layer norms, GELU written out, masks and broadcast heads."""

import pytest

from tuneplan.planner.training.settings import Settings
from tuneplan.profiling import small_models

FAMILIES = (
    "gpt2",
    "phi",
    "falcon",
    "falcon-old",
    "starcoder2",
    "opt",
    "gemma3_text",
    "bart",
    "t5-flan",
    "mixtral-balanced",
    "granitemoehybrid-dense",
)


@pytest.mark.traced
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_autocast(name: str, dtype: str) -> None:
    """Peak and phases of a step under autocast, of weights in fp32 and in 16 bits."""
    traced = pytest.importorskip("traced")
    run = Settings(
        micro_batch_size=2,
        seq_len=256,
        dtype=dtype,
        precision="autocast",
        gradient_checkpointing="off" if dtype == "fp32" else "non-reentrant",
    )
    traced.check(traced.Case(small_models.config(name), "full", run))


@pytest.mark.traced
@pytest.mark.parametrize("name", ["bart", "gpt2", "starcoder2"])
def test_written_out_attention(name: str) -> None:
    """A softmax that names no dtype is one in fp32."""
    traced = pytest.importorskip("traced")
    run = Settings(
        micro_batch_size=2, seq_len=128, dtype="fp32", precision="autocast", attention="eager", gradient_checkpointing="off"
    )
    traced.check(traced.Case(small_models.config(name), "full", run))
