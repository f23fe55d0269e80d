"""From a config.json to the layers of its KV cache: by the names of keys, so that families without an op list work too.

Each rule names the upstream file it follows (transformers 5.23 unless it says otherwise). What is not known is an error.
"""

from collections.abc import Sequence
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.serving.kv_cache import KvCache, KvLayer
from tuneplan.planner.serving.states import kimi_state, linear_state, mamba_state

KNOWN_TYPES = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "granite", "opt", "phi3", "gemma", "gemma2", "gemma3_text"),
    *("gemma4_text", "gpt_oss", "llama4_text", "deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2", "kimi_linear"),
    *("glm_moe_dsa", "qwen3_vl_text", "qwen3_vl_moe_text", "qwen3_5_text", "qwen3_5_moe_text", "nemotron_h", "nemotron-nas"),
    *("mimo", "mimo_v2_flash", "step3p7", "minimax_m2", "cohere2", "falcon", "gpt_bigcode", "gpt2", "gpt_neox"),
)
"""Values of model_type whose keys the rules below were written for; tests/planner/serving compares many with the real cache."""

_PATTERN_DEFAULTS = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4}
_ALL_SLIDING = ("mistral", "mixtral", "phi3", "starcoder2")
MOST_LAYERS = 2**12


def read_kv(config: ConfigReader) -> KvCache:
    """The cache of a model. Raises InputError where the config lacks a key, or names a form of attention that is not known."""
    config = language_part(config)
    notes: list[str] = []
    model_type = config.text("model_type", "")
    if model_type not in KNOWN_TYPES:
        notes.append(f"model_type {model_type!r} has no rule of its own: it was read by the common names of keys")
    if config.mapping.get("is_encoder_decoder") is True:
        raise InputError(
            f"{config.origin}: an encoder-decoder model, whose cross attention is not modelled; use a decoder-only model"
        )
    if config.has("compress_ratios"):
        raise InputError(
            f"{config.origin}: compress_ratios is a compressed attention whose cache tuneplan does not know yet, so it will not "
            "guess; use a model with full, sliding, latent or linear attention"
        )
    if config.has("sparse_attention_config"):
        notes.append("sparse_attention_config: keys and values of all tokens are counted, the index of the selection is not")
    shared = config.integer("num_kv_shared_layers", 0, minimum=0, maximum=MOST_LAYERS)
    layers = _layers(config, model_type)
    return KvCache.of(layers[: len(layers) - shared], tuple(notes))


def language_part(config: ConfigReader) -> ConfigReader:
    """The language model's part of a multimodal config."""
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(config.mapping.get(key), dict):
            return config.section(key)
    return config


def _layers(config: ConfigReader, model_type: str) -> list[KvLayer]:
    """All layers, those that keep nothing too."""
    if config.has("block_configs"):
        return _nas(config)
    pattern = config.mapping.get("hybrid_override_pattern") or config.mapping.get("layers_block_type")
    if pattern:
        return _mamba_hybrid(config, pattern)
    count = _count(config)
    if config.has("linear_attn_config"):
        return _kimi(config, count)
    if config.has("kv_lora_rank"):
        return [_latent(config, i) for i in range(count)]
    if config.has("hybrid_layer_pattern"):
        return _mimo(config, count)
    kinds = _kinds(config, model_type, count)
    return [_layer(config, kind) for kind in kinds]


def _count(config: ConfigReader) -> int:
    return _first(config, ("num_hidden_layers", "n_layer", "num_layers"), MOST_LAYERS)


def _first(config: ConfigReader, keys: Sequence[str], maximum: int = 2**24) -> int:
    """The integer at the first of several names; the first is the one that an error names."""
    key = next((name for name in keys if config.has(name)), keys[0])
    return config.integer(key, maximum=maximum)


def heads_of(config: ConfigReader) -> tuple[int, int]:
    """Key/value heads and the width of one.

    Multi-query models of older configs say `multi_query` (falcon, gpt_bigcode); Falcon's newer decoder says `num_kv_heads`.
    """
    heads = _first(config, ("num_attention_heads", "n_head", "num_heads"), 2**16)
    hidden = _first(config, ("hidden_size", "n_embd", "d_model"))
    kv = heads
    if config.has("num_key_value_heads"):
        kv = config.integer("num_key_value_heads", maximum=2**16)
    elif config.has("num_kv_heads") and config.boolean("new_decoder_architecture", True):
        kv = config.integer("num_kv_heads", maximum=2**16)
    elif config.has("multi_query_group_num"):
        kv = config.integer("multi_query_group_num", maximum=2**16)
    elif config.mapping.get("multi_query") is True:
        kv = 1
    if heads % kv:
        raise InputError(f"{config.origin}: {heads} attention heads are not a multiple of {kv} key/value heads; check the config")
    for key in ("head_dim", "attention_head_dim", "kv_channels"):
        if config.has(key):
            return kv, config.integer(key, maximum=2**14)
    if hidden % heads:
        raise InputError(f"{config.origin}: hidden_size {hidden} is not a multiple of {heads} heads and there is no head_dim")
    return kv, hidden // heads


def _kinds(config: ConfigReader, model_type: str, count: int) -> list[str]:
    """The kind of attention of each layer: `layer_types` where the config has it, else the model's own rule."""
    given = config.mapping.get("layer_types")
    if given is not None:
        if not isinstance(given, list) or len(given) < count or not all(isinstance(kind, str) for kind in given):
            raise InputError(f"{config.origin}: layer_types must be a list of {count} names, one a layer. Correct the file.")
        return given[:count]
    if model_type == "llama4_text":  # configuration_llama4.py: every fourth layer without rotary positions sees everything
        step = config.integer("no_rope_layer_interval", 4)
        return ["full_attention" if (i + 1) % step == 0 else "chunked_attention" for i in range(count)]
    if not config.has("sliding_window") or config.mapping.get("use_sliding_window") is False:
        return ["full_attention"] * count
    if config.has("sliding_window_pattern") or model_type in _PATTERN_DEFAULTS:
        step = config.integer("sliding_window_pattern", _PATTERN_DEFAULTS.get(model_type, 1))
        return ["full_attention" if (i + 1) % step == 0 else "sliding_attention" for i in range(count)]
    if config.mapping.get("use_sliding_window") is True:  # configuration_qwen2.py: layers from max_window_layers on
        first = config.integer("max_window_layers", 28, minimum=0, maximum=MOST_LAYERS)
        return ["full_attention" if i < first else "sliding_attention" for i in range(count)]
    if model_type in _ALL_SLIDING:
        return ["sliding_attention"] * count
    raise InputError(
        f"{config.origin}: sliding_window is set, but not which layers use it (layer_types, sliding_window_pattern or "
        "use_sliding_window). Add layer_types to a copy of the config."
    )


def _layer(config: ConfigReader, kind: str) -> KvLayer:
    if kind == "linear_attention":
        return KvLayer("state", state_bytes=linear_state(config))
    heads, width = heads_of(config)
    if kind == "full_attention":
        # Gemma 4 has wider heads, and fewer, where attention is global (configuration_gemma4.py)
        heads = config.integer("num_global_key_value_heads", heads, maximum=2**16)
        width = config.integer("global_head_dim", width, maximum=2**14)
        return KvLayer("full", heads, width, width)
    if kind == "sliding_attention":
        return KvLayer("sliding", heads, width, width, config.integer("sliding_window", maximum=2**30))
    if kind == "chunked_attention":
        return KvLayer("chunked", heads, width, width, config.integer("attention_chunk_size", maximum=2**30))
    raise InputError(
        f"{config.origin}: layer type {kind!r} is not known; known are full_attention, sliding_attention, chunked_attention and "
        "linear_attention"
    )


def _latent(config: ConfigReader, index: int) -> KvLayer:
    """MLA: one compressed vector and one rotary key for all heads (DeepSeek-V2, arXiv:2405.04434, section 2.1.3).

    A sparse index keeps a key of `index_head_dim` in fp8 with a fp32 scale for 128 values (DeepSeek-V3.2; vLLM
    deepseek_v2.py DeepseekV32IndexerCache); GLM-5.2 shares indices between layers (`indexer_types`).
    """
    width = config.integer("kv_lora_rank", maximum=2**16) + config.integer("qk_rope_head_dim", 0, minimum=0, maximum=2**16)
    own = config.mapping.get("indexer_types")
    indexed = config.has("index_head_dim") and not (isinstance(own, list) and own[index : index + 1] == ["shared"])
    size = config.integer("index_head_dim", maximum=2**14) if indexed else 0
    return KvLayer("latent", 1, width, 0, index_bytes=size + 4 * -(-size // 128))


def _kimi(config: ConfigReader, count: int) -> list[KvLayer]:
    """Kimi Linear: MLA in the layers of `full_attn_layers` (counted from 1), delta attention with a state in the others."""
    section = config.section("linear_attn_config")
    full = section.mapping.get("full_attn_layers")
    if not isinstance(full, list):
        raise InputError(f"{section.origin}: full_attn_layers must be a list of layer numbers. Correct the file.")
    state = KvLayer("state", state_bytes=kimi_state(section))
    return [_latent(config, i) if i + 1 in full else state for i in range(count)]


def _mimo(config: ConfigReader, count: int) -> list[KvLayer]:
    """MiMo-V2: 1 in `hybrid_layer_pattern` is a sliding layer with heads of its own; values are narrower than keys."""
    pattern = config.mapping["hybrid_layer_pattern"]
    if not isinstance(pattern, list) or len(pattern) != count or not set(map(str, pattern)) <= {"0", "1"}:
        raise InputError(f"{config.origin}: hybrid_layer_pattern must be a list of {count} times 0 or 1. Correct the file.")
    heads, width = heads_of(config)
    full = KvLayer("full", heads, width, config.integer("v_head_dim", width, maximum=2**14))
    key = config.integer("swa_head_dim", width, maximum=2**14)
    sliding = KvLayer(
        "sliding",
        config.integer("swa_num_key_value_heads", heads, maximum=2**16),
        key,
        config.integer("swa_v_head_dim", key, maximum=2**14),
        config.integer("sliding_window", maximum=2**30),
    )
    return [sliding if kind else full for kind in pattern]


def _mamba_hybrid(config: ConfigReader, pattern: Any) -> list[KvLayer]:
    """Nemotron-H: a letter or a name for each layer; attention keeps keys and values, Mamba a state, the rest nothing."""
    names = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
    kinds = [names.get(k, k) for k in pattern] if isinstance(pattern, str | list) and len(pattern) <= MOST_LAYERS else []
    heads, width = heads_of(config)
    made = {
        "mamba": KvLayer("state", state_bytes=mamba_state(config)),
        "attention": KvLayer("full", heads, width, width),
        "mlp": KvLayer("none"),
        "moe": KvLayer("none"),
    }
    unknown = [kind for kind in kinds if not isinstance(kind, str) or kind not in made]
    if unknown or not kinds:
        raise InputError(
            f"{config.origin}: the layer pattern holds {str(unknown[:1] or 'nothing')[:60]}; known are M, *, - and E"
        )
    return [made[kind] for kind in kinds]


def _nas(config: ConfigReader) -> list[KvLayer]:
    """Nemotron-NAS: each block says how many query heads share a key/value head, or that it has no attention."""
    blocks = config.mapping["block_configs"]
    count = config.integer("num_hidden_layers", maximum=MOST_LAYERS)
    heads = config.integer("num_attention_heads", maximum=2**16)
    width = config.integer("head_dim", config.integer("hidden_size") // heads, maximum=2**14)
    if not isinstance(blocks, list) or len(blocks) != count:
        raise InputError(f"{config.origin}: block_configs must be a list of {count} blocks. Correct the file.")
    layers = []
    for block in blocks:
        attention = ConfigReader(block if isinstance(block, dict) else {}, config.origin).section("attention")
        if attention.boolean("no_op", False) or attention.boolean("replace_with_linear", False):
            layers.append(KvLayer("none"))
        else:
            kv = max(1, heads // attention.integer("n_heads_in_group", maximum=2**16))
            window = attention.integer("window_length", 0, minimum=0, maximum=2**30)
            layers.append(KvLayer("sliding" if window else "full", kv, width, width, window))
    return layers
