"""Weights of Step 3.7's text model from a config that has its sizes at the top level, which transformers would pass over.

Mirrors the constructors of transformers 5.23 models/step3p7. A config with `text_config` is not counted here: it is traced.
"""

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.counted_parts import Shapes, at, experts, linears, mlp, norms, pair

_MODEL = "model.language_model"


def weight_shapes(config: ConfigReader) -> Shapes | None:
    """Every weight of the text model and its head, by transformers' name, or None for a config that is not flat.

    Layers for the prediction of further tokens are not built, and so are not listed. Raises InputError where dimensions are
    missing or contradict each other.
    """
    if config.has("text_config") or any(config.boolean(key, False) for key in ("attention_bias", "mlp_bias")):
        return None
    if config.integer("n_shared_experts", 1, minimum=0) != 1:
        return None
    hidden, vocabulary = config.integer("hidden_size"), config.integer("vocab_size")
    found: Shapes = {f"{_MODEL}.embed_tokens.weight": (vocabulary, hidden)}
    for index in range(config.integer("num_hidden_layers", maximum=2**12)):
        layer = {**_attention(config, index), **_mlp(config, index), **norms(config)}
        found |= {f"{_MODEL}.layers.{index}.{name}": shape for name, shape in layer.items()}
    found[f"{_MODEL}.norm.weight"] = (hidden,)
    if not config.boolean("tie_word_embeddings", False):
        found["lm_head.weight"] = (vocabulary, hidden)
    return found


def remark(config: ConfigReader) -> str:
    """What the file leaves open, and how it was read."""
    said = "its text model, as the keys at the top level have it"
    if _windowed(config) and not config.has("num_sliding_attention_heads") and not config.has("attention_other_setting"):
        heads = config.integer("num_attention_heads")
        said += (
            f"; layers with a window are read with {heads} heads as the others, transformers' default, since the file leaves "
            "num_sliding_attention_heads out"
        )
    return said


def _windowed(c: ConfigReader) -> bool:
    kinds = c.mapping.get("layer_types")
    return isinstance(kinds, list) and "sliding_attention" in kinds


def _attention(c: ConfigReader, index: int) -> Shapes:
    """Grouped attention with norms of queries and keys, and a gate of each head."""
    hidden, head = c.integer("hidden_size"), c.integer("head_dim", 128, maximum=2**14)
    heads = c.integer("num_attention_heads")
    if c.has("layer_types") and at(c, "layer_types", index) == "sliding_attention":
        heads = _sliding_heads(c, heads)
    kv = c.integer("num_key_value_heads") * head
    sizes = {"q_proj": (heads * head, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, heads * head)}
    return {**linears("self_attn", {**sizes, "g_proj": (heads, hidden)}), **pair("self_attn", head)}


def _sliding_heads(c: ConfigReader, heads: int) -> int:
    if not c.has("num_sliding_attention_heads") and c.has("attention_other_setting"):
        return c.section("attention_other_setting").integer("num_attention_heads", heads)
    return c.integer("num_sliding_attention_heads", heads)


def _mlp(c: ConfigReader, index: int) -> Shapes:
    hidden = c.integer("hidden_size")
    if _dense(c, index):
        return mlp("mlp", hidden, c.integer("intermediate_size"))
    count = c.integer("num_experts" if c.has("num_experts") else "n_routed_experts")
    return {
        "mlp.gate.weight": (count, hidden),
        **experts("mlp", count, hidden, c.integer("moe_intermediate_size")),
        **mlp("mlp.shared_experts", hidden, c.integer("share_expert_dim")),
    }


def _dense(c: ConfigReader, index: int) -> bool:
    if c.has("mlp_layer_types"):
        return at(c, "mlp_layer_types", index) == "dense"
    if c.has("moe_layers_enum"):
        raise InputError(
            f"{c.origin}: 'moe_layers_enum' beside sizes at the top level is not known; name the kind of each layer in "
            "'mlp_layer_types', or use the config.json published with the model"
        )
    return index < c.integer("first_k_dense_replace", 3, minimum=0)
