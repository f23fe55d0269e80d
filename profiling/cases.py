"""What the GPU campaign measures: real models, methods and settings, in the planner's words; and tiny ones for a CPU."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tuneplan.planner.models.lookup import find as find_model

OFF, ON = "off", "non-reentrant"
QV = "lora(r=16,target_modules=q_proj,v_proj)"

UNPLANNED: dict[str, dict[str, Any]] = {
    "google/gemma-2-2b": {
        "model_type": "gemma2",
        "architectures": ["Gemma2ForCausalLM"],
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "max_position_embeddings": 8192,
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "vocab_size": 256000,
    },
    "allenai/OLMoE-1B-7B-0924": {
        "model_type": "olmoe",
        "architectures": ["OlmoeForCausalLM"],
        "hidden_size": 2048,
        "intermediate_size": 1024,
        "max_position_embeddings": 4096,
        "num_attention_heads": 16,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 16,
        "num_key_value_heads": 16,
        "tie_word_embeddings": False,
        "vocab_size": 50304,
    },
}
"""Models outside the catalog: the keys of their config.json on the Hugging Face hub that decide shapes (read 2026-11-23 from
copies in public repositories). transformers makes 2,614,341,888 and 6,919,161,856 parameters of them."""

TINY: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 512,
}
"""Replaces the sizes of a model where the campaign is tried on a CPU."""


@dataclass(frozen=True, slots=True)
class Case:
    """One configuration to measure.

    Attributes:
        model: an alias of the catalog, or a key of UNPLANNED.
        method: as on the command line.
        micro_batch_size: sequences of a forward; 0 for a search for the largest that fits.
        seq_len: tokens of a sequence.
        gradient_checkpointing: "off", "non-reentrant" or "reentrant".
        attention: eager, sdpa or flash (where the package is installed).
        optimizer: a name of the planner's registry.
        dtype: bf16, fp16 or fp32.
        precision: pure, master-weights or autocast.
        loss: eager, chunked or liger (where the package is installed).
        gradient_accumulation_steps: micro-batches of an update.
        padded: attention gets a mask.
    """

    model: str
    method: str = "lora"
    micro_batch_size: int = 1
    seq_len: int = 1024
    gradient_checkpointing: str = OFF
    attention: str = "sdpa"
    optimizer: str = "adamw"
    dtype: str = "bf16"
    precision: str = "pure"
    loss: str = "eager"
    gradient_accumulation_steps: int = 1
    padded: bool = False

    @property
    def key(self) -> str:
        """The same for the same case, in every file."""
        return key_of(asdict(self))

    @property
    def label(self) -> str:
        """For a table or a line of output."""
        batch = f"{self.micro_batch_size or 'largest'} x {self.seq_len}"
        usual = Case(self.model)
        others = ("gradient_checkpointing", "attention", "optimizer", "dtype", "precision", "loss", "padded")
        changed = [
            str(getattr(self, name)) for name in others if getattr(self, name) != getattr(usual, name) and name != "padded"
        ]
        changed += ["padded"] if self.padded else []
        changed += [f"{self.gradient_accumulation_steps} micro-batches"] if self.gradient_accumulation_steps > 1 else []
        return ", ".join([f"{self.model} {self.method} {batch}", *changed])


def key_of(case: Mapping[str, Any]) -> str:
    """The identity of a case as it stands in a row."""
    return json.dumps(case, sort_keys=True)


def config_of(model: str, tiny: bool = False) -> dict[str, Any]:
    """The config.json of a case's model, or a tiny one of the same architecture. Raises UnknownNameError."""
    known = UNPLANNED.get(model)
    config: dict[str, Any] = known or json.loads(find_model(model).config_path.read_text(encoding="utf-8"))
    return {**config, **TINY} if tiny else dict(config)


def gpu_cases() -> Iterator[Case]:
    """Cases for a card of 80 to 141 GB, those that say most first; each takes seconds."""
    for checkpointing in (OFF, ON):
        for method in ("lora", "qlora", "full"):
            yield Case("7b", method, 8, 512, checkpointing)
        for method in ("lora", "full"):
            yield Case("llama-3.2-1b", method, 4, 2048, checkpointing)
            yield Case("qwen2.5-0.5b", method, 4, 1024, checkpointing)
        yield Case("8b", "lora", 2, 2048, checkpointing)
    yield from _models()
    yield from _methods()
    yield from _settings()
    for method, checkpointing, length in (("lora", ON, 2048), ("qlora", OFF, 1024), ("lora", OFF, 1024)):
        yield Case("8b", method, 0, length, checkpointing)
    yield Case("llama-3.2-1b", "full", 0, 1024, OFF)
    yield Case("70b", "qlora", 0, 1024, ON)


def _models() -> Iterator[Case]:
    yield Case("13b", "lora", 4, 512)
    yield Case("13b", "qlora", 8, 1024, ON)
    yield Case("70b", "qlora", 8, 512, ON)
    yield Case("70b", "lora", 1, 512, ON)
    yield Case("llama-3.2-3b", "full", 2, 1024, ON)
    yield Case("llama-3.2-3b", "qlora", 4, 1024)
    yield Case("qwen2.5-7b", "lora", 2, 1024)
    yield Case("qwen2.5-7b", "full", 1, 1024, ON)
    yield Case("mistral-7b-v0.1", "lora", 4, 2048, ON)
    yield Case("mistral-7b-v0.1", "full", 1, 2048, ON)
    yield Case("8b", "lora", 1, 16384, ON)
    yield Case("google/gemma-2-2b", "lora", 2, 1024, attention="eager")
    yield Case("google/gemma-2-2b", "full", 1, 1024, ON, "eager")
    yield Case("allenai/OLMoE-1B-7B-0924", QV, 2, 1024)
    yield Case("allenai/OLMoE-1B-7B-0924", QV, 4, 1024, ON)


def _methods() -> Iterator[Case]:
    for method in ("dora", "ia3", "prompt_tuning", "prefix_tuning", "p_tuning", "vera", "ln_tuning", "oft", QV):
        yield Case("llama-3.2-3b", method, 4, 512)
    yield Case("7b", "dora", 4, 512, ON)
    yield Case("7b", "lora(autocast_adapter_dtype=false)", 8, 512)
    yield Case("7b", "prefix_tuning", 4, 512)


def _settings() -> Iterator[Case]:
    """No paged optimizer: its states are managed memory, which no statistics of the allocator count."""
    for attention in ("eager", "flash"):
        yield Case("llama-3.2-1b", "lora", 2, 2048, OFF, attention)
    yield Case("7b", "lora", 2, 1024, OFF, "eager")
    yield Case("7b", "lora", 2, 1024, padded=True)
    for optimizer in ("adamw_fused", "adamw_forloop", "adamw_8bit", "sgd_momentum", "adafactor", "lion"):
        yield Case("llama-3.2-1b", "full", 1, 512, ON, optimizer=optimizer)
    for precision in ("autocast", "master-weights"):
        yield Case("llama-3.2-1b", "full", 2, 1024, precision=precision)
    yield Case("llama-3.2-1b", "lora", 2, 1024, precision="autocast")
    yield Case("qwen2.5-0.5b", "full", 2, 512, dtype="fp32")
    yield Case("qwen2.5-0.5b", "lora", 2, 512, dtype="fp16")
    yield Case("llama-3.2-1b", "full", 2, 1024, gradient_accumulation_steps=2)
    for loss in ("chunked", "liger"):
        yield Case("llama-3.2-1b", "lora", 4, 1024, loss=loss)


def cpu_cases() -> Iterator[Case]:
    """Cases that take a second each once their models are made tiny; attention is eager, which is alike on every device."""
    for method in ("full", "lora", "qlora"):
        yield Case("qwen2.5-0.5b", method, 2, 64, OFF, "eager")
    yield Case("llama-3.2-1b", "lora", 1, 64, ON, "eager")
    yield Case("google/gemma-2-2b", "lora", 1, 32, OFF, "eager")
    yield Case("llama-3.2-1b", "prefix_tuning", 1, 64, OFF, "eager")
