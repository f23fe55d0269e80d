"""Weights of architectures whose ops no family mirrors yet: the name and the shape of each, from the config.

So that a report can give their exact size. Mirrors the modules' constructors in transformers 5.23 (models/<model_type>); layers
for the prediction of further tokens are not built there, and so are not listed. Vision towers are in
`counted_images`, and models that are not layers of one kind in modules of their own (`WHOLE`).
"""

from collections.abc import Callable, Sequence
from math import prod

from tuneplan.planner.models import counted_images, counted_kimi, counted_step
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.counted_parts import Shapes, at, experts, linears, mlp, norms, pair
from tuneplan.planner.models.registry import described


def weight_shapes(config: ConfigReader) -> Shapes | None:
    """Every weight by its name in the state dict, or None for a model type that is not listed here.

    Raises InputError where dimensions are missing, and for a checkpoint in a format that training does not start from.
    """
    inner, _ = described(config)
    whole = WHOLE.get(inner.text("model_type"))
    if whole is not None:
        return whole(inner)
    layer = LAYERS.get(inner.text("model_type"))
    if layer is None:
        return None
    make, embedding, norm = layer
    hidden, vocabulary = inner.integer("hidden_size"), inner.integer("vocab_size")
    found: Shapes = {f"model.{embedding}.weight": (vocabulary, hidden)}
    for index in range(_depth(inner)):
        found |= {f"model.layers.{index}.{name}": shape for name, shape in make(inner, index).items()}
    found[f"model.{norm}.weight"] = (hidden,)
    found |= _beside(inner)
    if not inner.boolean("tie_word_embeddings", False):
        found["lm_head.weight"] = (vocabulary, hidden)
    return found


def parameters(config: ConfigReader) -> int | None:
    """How many there are, or None for a model type that is not listed here; see `weight_shapes`."""
    shapes = weight_shapes(config)
    return None if shapes is None else sum(prod(shape) for shape in shapes.values())


def remark(config: ConfigReader) -> str:
    """What the count has to say of a config that leaves something open, or "" where it is complete."""
    inner, _ = described(config)
    return counted_step.remark(inner) if inner.text("model_type") == "step3p7" else ""


def _depth(c: ConfigReader) -> int:
    pattern = c.mapping.get("layers_block_type") or c.mapping.get("hybrid_override_pattern")
    return len(pattern) if isinstance(pattern, Sequence) else c.integer("num_hidden_layers", maximum=2**12)


def _beside(c: ConfigReader) -> Shapes:
    if c.text("model_type") != "deepseek_v4":
        return {}
    streams, hidden = c.integer("hc_mult", 4, maximum=2**8), c.integer("hidden_size")
    return {
        "model.hc_head.hc_fn": (streams, streams * hidden),
        "model.hc_head.hc_base": (streams,),
        "model.hc_head.hc_scale": (1,),
    }


def _deepseek_mlp(c: ConfigReader, dense: bool) -> Shapes:
    hidden = c.integer("hidden_size")
    if dense:
        return mlp("mlp", hidden, c.integer("intermediate_size"))
    count, width = c.integer("n_routed_experts"), c.integer("moe_intermediate_size")
    shared = c.integer("n_shared_experts", 1, minimum=0) if c.has("n_shared_experts") else 0
    found = {"mlp.gate.weight": (count, hidden), **experts("mlp", count, hidden, width)}
    return {**found, **mlp("mlp.shared_experts", hidden, width * shared)} if shared else found


def _sparse_latent(c: ConfigReader, index: int) -> Shapes:
    """DeepSeek V3.2 and GLM-5: latent attention with an indexer in the layers that choose tokens themselves."""
    hidden, heads, q_rank = c.integer("hidden_size"), c.integer("num_attention_heads"), c.integer("q_lora_rank")
    rank, rope = c.integer("kv_lora_rank"), c.integer("qk_rope_head_dim")
    nope, value = c.integer("qk_nope_head_dim"), c.integer("v_head_dim")
    found = linears(
        "self_attn",
        {
            "q_a_proj": (q_rank, hidden),
            "q_b_proj": (heads * (nope + rope), q_rank),
            "kv_a_proj_with_mqa": (rank + rope, hidden),
            "kv_b_proj": (heads * (nope + value), rank),
            "o_proj": (hidden, heads * value),
        },
    )
    found |= {"self_attn.q_a_layernorm.weight": (q_rank,), "self_attn.kv_a_layernorm.weight": (rank,)}
    if not c.has("indexer_types") or at(c, "indexer_types", index) == "full":
        columns, lookers = c.integer("index_head_dim", 128), c.integer("index_n_heads", 64)
        found |= linears(
            "self_attn.indexer",
            {"wq_b": (lookers * columns, q_rank), "wk": (columns, hidden), "weights_proj": (lookers, hidden)},
        )
        found |= {"self_attn.indexer.k_norm.weight": (columns,), "self_attn.indexer.k_norm.bias": (columns,)}
    if c.has("mlp_layer_types"):
        dense = at(c, "mlp_layer_types", index) == "dense"
    else:
        dense = index < c.integer("first_k_dense_replace", 3, minimum=0)
    return {**found, **_deepseek_mlp(c, dense), **norms(c)}


def _deepseek_v4(c: ConfigReader, index: int) -> Shapes:
    """DeepSeek V4: compressed attention with sinks, and several residual streams."""
    hidden, heads, head = c.integer("hidden_size"), c.integer("num_attention_heads"), c.integer("head_dim")
    q_rank, groups, o_rank = c.integer("q_lora_rank"), c.integer("o_groups"), c.integer("o_lora_rank")
    found: Shapes = {
        "self_attn.sinks": (heads,),
        "self_attn.q_a_norm.weight": (q_rank,),
        "self_attn.kv_norm.weight": (head,),
        **linears(
            "self_attn",
            {
                "q_a_proj": (q_rank, hidden),
                "q_b_proj": (heads * head, q_rank),
                "kv_proj": (head, hidden),
                "o_a_proj": (groups * o_rank, heads * head // groups),
                "o_b_proj": (hidden, groups * o_rank),
            },
        ),
    }
    ratio = at(c, "compress_ratios", index)
    if ratio:
        found |= _compressor("self_attn.compressor", c, int(str(ratio)), head)
    if ratio == _FINE:
        columns, lookers = c.integer("index_head_dim"), c.integer("index_n_heads")
        found |= _compressor("self_attn.compressor.indexer", c, _FINE, columns)
        found |= {
            "self_attn.compressor.indexer.q_b_proj.weight": (lookers * columns, q_rank),
            "self_attn.compressor.indexer.scorer.weights_proj.weight": (lookers, hidden),
        }
    streams = c.integer("hc_mult", 4, maximum=2**8)
    for name in ("attn_hc", "ffn_hc"):
        mixed = (2 + streams) * streams
        found |= {f"{name}.fn": (mixed, streams * hidden), f"{name}.base": (mixed,), f"{name}.scale": (3,)}
    return {**found, **_deepseek_mlp(c, dense=False), **norms(c)}


_FINE = 4
"""The ratio at which DeepSeek V4 compresses with an overlap, and looks for tokens."""


def _compressor(prefix: str, c: ConfigReader, ratio: int, columns: int) -> Shapes:
    wide = columns * (2 if ratio == _FINE else 1)
    sizes = {"kv_proj": (wide, c.integer("hidden_size")), "gate_proj": (wide, c.integer("hidden_size"))}
    return {f"{prefix}.position_bias": (ratio, wide), f"{prefix}.kv_norm.weight": (columns,), **linears(prefix, sizes)}


def _mimo_v2_flash(c: ConfigReader, index: int) -> Shapes:
    """MiMo V2: layers with a window have heads and sinks of their own."""
    hidden, windowed = c.integer("hidden_size"), at(c, "hybrid_layer_pattern", index) == 1
    own = "swa_" if windowed else ""
    heads, keys = c.integer(f"{own}num_attention_heads"), c.integer(f"{own}num_key_value_heads")
    head, value = c.integer(f"{own}head_dim"), c.integer(f"{own}v_head_dim")
    sizes = {
        "q_proj": (heads * head, hidden),
        "k_proj": (keys * head, hidden),
        "v_proj": (keys * value, hidden),
        "o_proj": (hidden, heads * value),
    }
    sinks = c.boolean("add_swa_attention_sink_bias" if windowed else "add_full_attention_sink_bias", False)
    found = {**linears("self_attn", sizes), **({"self_attn.sinks": (heads,)} if sinks else {})}
    return {**found, **_deepseek_mlp(c, dense=at(c, "moe_layer_freq", index) == 0), **norms(c)}


def _minimax_m3(c: ConfigReader, index: int) -> Shapes:
    """MiniMax M3's text model: grouped attention, with an indexer in sparse layers, and experts beside a shared one."""
    hidden, head = c.integer("hidden_size"), c.integer("head_dim", 128, maximum=2**14)
    q, kv = c.integer("num_attention_heads") * head, c.integer("num_key_value_heads") * head
    sizes = {"q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, q)}
    found = {**linears("self_attn", sizes), **pair("self_attn", head), **norms(c)}
    sparse = c.section("sparse_attention_config") if c.has("sparse_attention_config") else ConfigReader({}, c.origin)
    if sparse.has("sparse_attention_freq") and at(sparse, "sparse_attention_freq", index):
        lookers, columns = sparse.integer("sparse_num_index_heads", 4), sparse.integer("sparse_index_dim", 128)
        looking = {"q_proj": (lookers * columns, hidden), "k_proj": (columns, hidden)}
        found |= {**linears("self_attn.indexer", looking), **pair("self_attn.indexer", columns)}
    if c.has("moe_layer_freq") and not at(c, "moe_layer_freq", index):
        return {**found, **_fused_mlp("mlp", hidden, c.integer("dense_intermediate_size", 12288))}
    count = c.integer("num_local_experts", 128)
    found |= {"mlp.gate.weight": (count, hidden), **experts("mlp", count, hidden, c.integer("intermediate_size", 3072))}
    return {**found, **_fused_mlp("mlp.shared_experts", hidden, c.integer("shared_intermediate_size", 3072))}


def _fused_mlp(prefix: str, hidden: int, width: int) -> Shapes:
    return linears(prefix, {"gate_up_proj": (2 * width, hidden), "down_proj": (hidden, width)})


LAYERS: dict[str, tuple[Callable[[ConfigReader, int], Shapes], str, str]] = {
    "deepseek_v32": (_sparse_latent, "embed_tokens", "norm"),
    "deepseek_v4": (_deepseek_v4, "embed_tokens", "norm"),
    "glm_moe_dsa": (_sparse_latent, "embed_tokens", "norm"),
    "mimo_v2_flash": (_mimo_v2_flash, "embed_tokens", "norm"),
    "minimax_m3_vl_text": (_minimax_m3, "embed_tokens", "norm"),
}
"""By model type: the weights of a layer, and the names of the embedding and of the last norm."""

WHOLE: dict[str, Callable[[ConfigReader], Shapes | None]] = {
    **dict.fromkeys(counted_images.IMAGES, counted_images.weight_shapes),
    "kimi_k3": counted_kimi.weight_shapes,
    "step3p7": counted_step.weight_shapes,
}
"""By model type: lists of models that are more than layers of one kind; None where such a list does not fit the config."""
