"""Keys of PEFT's configurations whose meaning depends on their value: what must be said of them.

Values and defaults are those of the configuration classes of peft 0.21.
"""

from collections.abc import Mapping
from typing import Any

_PLAIN_STARTS = ("gaussian", "orthogonal", "true", "false", "default", "zero", "random")
_STARTS = {
    "eva": "a pass over data and SVDs before training, whose memory is not counted",
    "corda": "a pass over data and SVDs before training, whose memory is not counted",
    "lora_ga": "gradients of the base before training, whose memory is not counted",
    "loftq": "the base is quantized and restored while the adapter is made; plan the step with qlora if it stays quantized",
    "pissa": "an SVD of each weight while the adapter is made, whose memory is not counted",
    "olora": "a QR decomposition of each weight while the adapter is made, whose memory is not counted",
    "bat": "the weight is multiplied block by block; figures are of the default",
    "mini": "adapters of mini_r columns; figures are of whole ones",
}
_STRUCTURES = {"eva_config": "eva", "corda_config": "corda", "lora_ga_config": "lora_ga", "loftq_config": "loftq"}


def said(kind: str, key: str, value: Any, config: Mapping[str, Any]) -> str | None:
    """What must be said of a key.

    Args:
        kind: the `peft_type`.
        key: of the configuration.
        value: of it, not None.
        config: all keys.

    Returns:
        The sentence; "" where there is nothing to say; None for a key that has no rule here.
    """
    if key in ("init_lora_weights", "init_weights") and isinstance(value, str):
        return _start(value)
    if key in _STRUCTURES:
        start = str(config.get("init_lora_weights", "")).lower()
        return (
            ""
            if not value or start.startswith(_STRUCTURES[key])
            else f"is set, but init_lora_weights={start or True!r} does not use it"
        )
    rule = _RULES.get((kind, key)) or _RULES.get(("", key))
    return rule(value) if rule is not None else None


def _start(value: str) -> str:
    lower = value.lower()
    if lower in _PLAIN_STARTS:
        return ""
    known = next((text for name, text in _STARTS.items() if lower.startswith(name)), "")
    return f"means {known}" if known else "is no initialization that is known here; the step is taken to be the same"


def _unless(*plain: Any, text: str) -> Any:
    return lambda value: "" if value in plain else text


_RULES: dict[tuple[str, str], Any] = {
    ("", "layers_pattern"): _unless("", [], "layers", ["layers"], text="is taken to be the list of the model's decoder layers"),
    ("", "arrow_config"): _unless({}, text="is routing between adapters at inference, which is not modelled"),
    ("", "ensure_weight_tying"): _unless(False, text="is not modelled: a copied embedding and head count once each"),
    ("", "fan_in_fan_out"): lambda value: "",
    ("BOFT", "boft_n_butterfly_factor"): _unless(0, 1, text="is not modelled: figures are of one butterfly factor"),
    ("OFT", "use_cayley_neumann"): _unless(
        True, text="is not modelled: figures are of the Cayley-Neumann series, not of a solve"
    ),
    ("P_TUNING", "encoder_reparameterization_type"): _unless("MLP", text="is not modelled: figures are of the MLP encoder"),
    ("TRAINABLE_TOKENS", "target_modules"): _unless(
        "embed_tokens", ["embed_tokens"], text="is taken to be the model's embedding"
    ),
    ("LORA", "megatron_core"): lambda value: "",
    ("ADAPTION_PROMPT", "target_modules"): lambda value: "",
}
