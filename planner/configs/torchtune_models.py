"""torchtune's model builders, and the hub model that has the same shapes (torchtune 0.6.1, models/*/_model_builders.py)."""

from collections.abc import Mapping
from typing import Any

from tuneplan.planner.models.config import read_config_file
from tuneplan.planner.models.lookup import entries

BUILDERS = {
    "llama2.llama2_7b": "meta-llama/Llama-2-7b-hf",
    "llama2.llama2_13b": "meta-llama/Llama-2-13b-hf",
    "llama2.llama2_70b": "meta-llama/Llama-2-70b-hf",
    "code_llama2.code_llama2_7b": "codellama/CodeLlama-7b-hf",
    "code_llama2.code_llama2_13b": "codellama/CodeLlama-13b-hf",
    "code_llama2.code_llama2_70b": "codellama/CodeLlama-70b-hf",
    "llama3.llama3_8b": "meta-llama/Meta-Llama-3-8B",
    "llama3.llama3_70b": "meta-llama/Meta-Llama-3-70B",
    "llama3_1.llama3_1_8b": "meta-llama/Llama-3.1-8B",
    "llama3_1.llama3_1_70b": "meta-llama/Llama-3.1-70B",
    "llama3_1.llama3_1_405b": "meta-llama/Llama-3.1-405B",
    "llama3_2.llama3_2_1b": "meta-llama/Llama-3.2-1B",
    "llama3_2.llama3_2_3b": "meta-llama/Llama-3.2-3B",
    "llama3_3.llama3_3_70b": "meta-llama/Llama-3.3-70B-Instruct",
    "mistral.mistral_7b": "mistralai/Mistral-7B-v0.1",
    "qwen2.qwen2_0_5b": "Qwen/Qwen2-0.5B",
    "qwen2.qwen2_1_5b": "Qwen/Qwen2-1.5B",
    "qwen2.qwen2_7b": "Qwen/Qwen2-7B",
    "qwen2_5.qwen2_5_0_5b": "Qwen/Qwen2.5-0.5B",
    "qwen2_5.qwen2_5_1_5b_base": "Qwen/Qwen2.5-1.5B",
    "qwen2_5.qwen2_5_1_5b_instruct": "Qwen/Qwen2.5-1.5B-Instruct",
    "qwen2_5.qwen2_5_3b": "Qwen/Qwen2.5-3B",
    "qwen2_5.qwen2_5_7b_base": "Qwen/Qwen2.5-7B",
    "qwen2_5.qwen2_5_7b_instruct": "Qwen/Qwen2.5-7B-Instruct",
    "qwen2_5.qwen2_5_14b_base": "Qwen/Qwen2.5-14B",
    "qwen2_5.qwen2_5_14b_instruct": "Qwen/Qwen2.5-14B-Instruct",
    "qwen2_5.qwen2_5_32b_base": "Qwen/Qwen2.5-32B",
    "qwen2_5.qwen2_5_32b_instruct": "Qwen/Qwen2.5-32B-Instruct",
    "qwen2_5.qwen2_5_72b_base": "Qwen/Qwen2.5-72B",
    "qwen2_5.qwen2_5_72b_instruct": "Qwen/Qwen2.5-72B-Instruct",
    "gemma.gemma_2b": "google/gemma-2b",
    "gemma.gemma_7b": "google/gemma-7b",
    "gemma2.gemma2_2b": "google/gemma-2-2b",
    "gemma2.gemma2_9b": "google/gemma-2-9b",
    "gemma2.gemma2_27b": "google/gemma-2-27b",
    "phi3.phi3_mini": "microsoft/Phi-3-mini-4k-instruct",
    "phi4.phi4_14b": "microsoft/phi-4",
}
PREFIX = "torchtune.models."
FORMS = ("qlora_", "lora_")
ANY_SIZE = ("llama2", "llama3", "llama3_1", "llama3_2", "mistral", "qwen2", "qwen2_5")
"""Builders that take the dimensions themselves, in a package of the same name."""
DIMENSIONS = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "embed_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
}
"""Their arguments, and the keys of a config.json that say the same."""


def of_dimensions(family: str, arguments: Mapping[str, Any]) -> str | None:
    """A model of the catalog whose config has a builder's dimensions, with the same context if there is one; else None.

    `family`: the builder, which decides between model types of equal dimensions.
    """
    kind = "mistral" if family == "mistral" else "qwen2" if family.startswith("qwen2") else "llama"
    found: dict[bool, str] = {}
    for entry in entries():
        config = read_config_file(entry.config_path)
        heads = config.get("num_key_value_heads", config.get("num_attention_heads"))
        given = {**config, "num_key_value_heads": heads}
        if config.get("model_type") == kind and all(given.get(key) == arguments.get(name) for name, key in DIMENSIONS.items()):
            found.setdefault(config.get("max_position_embeddings") == arguments.get("max_seq_len"), entry.id)
    return found.get(True, found.get(False))
