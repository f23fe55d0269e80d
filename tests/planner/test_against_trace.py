"""The ledger against the real transformers and PEFT code traced on the meta device.

Tolerance 0.1 % of the allocated peak: what is left are tensors of a few bytes a token (labels, losses, positions) that the
ledger does not list one by one. The phases apart are held to 0.75 %: in models of 20 MB one
hidden state more or less is 0.5 %.
"""

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

import traced as side_by_side
from traced import Case, small

from tuneplan.planner.training.settings import Settings

pytestmark = pytest.mark.traced

PHASE_TOLERANCE = 0.0075

BASE = Settings(micro_batch_size=2, seq_len=256, gradient_checkpointing="off")
LORA_QV = "lora(r=8,target_modules=q_proj,v_proj,lora_dropout=0.1,autocast_adapter_dtype=false)"
METHODS = ("full", "lora", LORA_QV, "qlora", "qlora(prepare_kbit=false)", "qlora(quant_type=fp4,double_quant=false)")


def check(case: Case) -> None:
    """Phase by phase and at the peak, and the parameter counts exactly."""
    side_by_side.check(case, phases=PHASE_TOLERANCE)


@pytest.mark.parametrize("checkpointing", ["off", "non-reentrant", "reentrant"])
@pytest.mark.parametrize("method", METHODS)
def test_methods_on_a_grouped_llama(method: str, checkpointing: str) -> None:
    """Full, LoRA and QLoRA in their variants, under each kind of gradient checkpointing."""
    check(Case(small(), method, replace(BASE, gradient_checkpointing=checkpointing)))


@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "qwen3", "granite"])
@pytest.mark.parametrize("checkpointing", ["off", "non-reentrant"])
def test_relatives_of_llama(model_type: str, checkpointing: str) -> None:
    """Biases, norms of queries and keys, multipliers, explicit head sizes and tied embeddings; other methods are validated."""
    changes: dict[str, Any] = {"tie_word_embeddings": model_type != "mistral"}
    if model_type == "qwen3":
        changes["head_dim"] = 96
    check(Case(small(model_type, **changes), LORA_QV, replace(BASE, gradient_checkpointing=checkpointing)))


@pytest.mark.parametrize("key_heads", [1, 4, 8])
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash"])
@pytest.mark.parametrize("method", ["full", "qlora"])
def test_attention_implementations(method: str, attention: str, key_heads: int) -> None:
    """Multi-query, grouped and multi-head attention under each implementation; QLoRA's queries are fp32."""
    config = small(num_key_value_heads=key_heads)
    for checkpointing in ("off", "non-reentrant"):
        check(Case(config, method, replace(BASE, attention=attention, gradient_checkpointing=checkpointing)))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_dropout(attention: str) -> None:
    """Eager attention keeps a mask of one byte for each score; fused kernels keep nothing more."""
    config = small(attention_dropout=0.1)
    check(Case(config, "full", replace(BASE, attention=attention)))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_fp32(method: str) -> None:
    """A model in fp32: no casts, and sdpa falls back to its unfused kernel for grouped heads."""
    check(Case(small(), method, replace(BASE, dtype="fp32")))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("checkpointing", ["off", "non-reentrant"])
def test_gradient_accumulation(tied: bool, checkpointing: str) -> None:
    """Later micro-batches start with gradients in place; those of a tied embedding wait for both of its uses."""
    settings = replace(BASE, accumulating=True, gradient_checkpointing=checkpointing)
    check(Case(small(tie_word_embeddings=tied), "full", settings))


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_forloop", "sgd", "sgd_momentum", "adafactor"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_optimizers(optimizer: str, method: str) -> None:
    """What an update keeps and what it holds for a moment; a batch so small that the update is the peak."""
    settings = replace(BASE, micro_batch_size=1, seq_len=64, gradient_checkpointing="non-reentrant")
    check(Case(small(), method, settings, optimizer))


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_lora_biases(bias: str) -> None:
    """LoRA that also trains biases, of the whole model or of the adapted modules."""
    method = f"lora(r=8,target_modules=q_proj,v_proj,bias={bias})"
    check(Case(small("qwen2"), method, BASE))


@pytest.mark.parametrize(("batch", "length"), [(1, 64), (1, 1024), (4, 512), (3, 100)])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_batches_and_lengths(method: str, batch: int, length: int) -> None:
    """Batch and length varied, odd ones too."""
    for checkpointing in ("off", "non-reentrant"):
        settings = replace(BASE, micro_batch_size=batch, seq_len=length, gradient_checkpointing=checkpointing)
        check(Case(small(), method, settings))


@pytest.mark.parametrize("loss", ["chunked", "liger", "trl"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize(("batch", "length"), [(1, 512), (3, 200)])
def test_loss_implementations(loss: str, method: str, batch: int, length: int) -> None:
    """A large vocabulary, with the head and the loss in chunks or fused; the logits set the peak without them."""
    settings = replace(BASE, micro_batch_size=batch, seq_len=length, loss=loss, gradient_checkpointing="non-reentrant")
    check(Case(small(vocab_size=16000, num_hidden_layers=2), method, settings))


@pytest.mark.parametrize("key_heads", [4, 8])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("method", ["full", LORA_QV, "qlora"])
@pytest.mark.parametrize("keep_outputs", [False, True])
def test_training_loops_of_users(method: str, attention: str, key_heads: int, keep_outputs: bool) -> None:
    """A loop that keeps the model's outputs, and a model that keeps its keys and values, which the Trainer both avoids."""
    settings = replace(BASE, attention=attention, use_cache=True, keep_outputs=keep_outputs)
    check(Case(small(num_key_value_heads=key_heads), method, settings))
    if keep_outputs:
        check(Case(small(), method, replace(settings, use_cache=False, gradient_checkpointing="non-reentrant")))


@pytest.mark.parametrize("method", ["full", "qlora"])
@pytest.mark.parametrize("checkpointing", ["off", "non-reentrant"])
def test_padded_batches(method: str, checkpointing: str) -> None:
    """With a mask sdpa runs the memory-efficient kernel, and each layer keeps the mask as a bias."""
    settings = replace(BASE, seq_len=512, padded=True, gradient_checkpointing=checkpointing)
    check(Case(small(), method, settings))


@pytest.mark.parametrize("checkpointing", ["off", "non-reentrant", "reentrant"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["full", "lora", LORA_QV, "qlora"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_autocast(method: str, dtype: str, checkpointing: str, attention: str) -> None:
    """`TrainingArguments(bf16=True)`: products cast their inputs, and the casts of trained weights outlive them."""
    settings = replace(BASE, dtype=dtype, precision="autocast", gradient_checkpointing=checkpointing, attention=attention)
    check(Case(small(), method, settings))
