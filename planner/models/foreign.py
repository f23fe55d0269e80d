"""A config whose `model_type` does not go with its other keys: one renamed, or two files mixed up."""

from collections.abc import Mapping
from typing import Any

from tuneplan.planner.errors import InputError

KEYS: Mapping[str, tuple[int, str]] = {
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), (1, "a mixture of experts")),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), (0, "multi-head latent attention")),
    **dict.fromkeys(
        ("ssm_state_size", "mamba_d_state", "state_size", "mamba_n_heads", "mamba_num_heads", "linear_num_key_heads"),
        (0, "layers with a state"),
    ),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_decoder_layers", "d_kv"), (0, "an encoder and a decoder")),
}
"""Keys that decide what a layer is: the value up to which they say nothing, and what a model with more of it has."""


def refuse_foreign(mapping: Mapping[str, Any], asked: set[str], origin: str) -> None:
    """Raise InputError where a deciding key is set that reading the model never asked for.

    Args:
        mapping: the config.
        asked: keys that the family looked at.
        origin: for the message.
    """
    found: dict[str, list[str]] = {}
    for key, (idle, words) in KEYS.items():
        value = mapping.get(key)
        if key not in asked and isinstance(value, int) and not isinstance(value, bool) and value > idle:
            found.setdefault(words, []).append(key)
    if not found:
        return
    said = "; ".join(f"{', '.join(keys)}: {words}" for words, keys in found.items())
    raise InputError(
        f"{origin}: model_type {str(mapping.get('model_type'))[:60]!r} has none of what other keys say ({said}). "
        "Use the config.json published with the model, or remove these keys if they are left over"
    )
