"""Weights of Kimi K3, which transformers does not have: language model, tower and projector, from the config.

Names and shapes are those of the published checkpoint (moonshotai/Kimi-K3, index and headers of its safetensors files), with the
experts of a layer stacked into one weight. Put together for its config they give the checkpoint's own totals: 2,779,931,837,184
parameters and 1,560,860,324,864 bytes in 497,220 tensors. Of variants that the checkpoint does not have nothing is said.
"""

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.counted_parts import Shapes, linears, mlp, norms

_TEXT = {
    "model_type": "kimi_linear",
    "latent_moe_use_norm": True,
    "mla_use_output_gate": True,
    "moe_layer_freq": 1,
    "moe_router_activation_func": "sigmoid",
    "topk_method": "noaux_tc",
    "num_nextn_predict_layers": 0,
}
_TOWER = {
    "attn_bias": False,
    "linear_bias": False,
    "patch_embed_proj_bias": False,
    "norm_type": "rmsnorm",
    "mlp_type": "mlp2",
    "mm_projector_type": "patchmergerv2",
    "pos_emb_type": "divided_fixed",
}
"""What the checkpoint's config says of the kinds of its modules; another value would be other weights."""


def weight_shapes(config: ConfigReader) -> Shapes | None:
    """Every weight by its name in the checkpoint, or None for a variant of the model that was never published.

    Raises InputError where dimensions are missing or contradict each other.
    """
    text, tower = config.section("text_config"), config.section("vision_config")
    if not (
        _says(text, _TEXT) and _says(tower, _TOWER) and _says(text.section("linear_attn_config"), {"use_full_rank_gate": True})
    ):
        return None
    if not text.has("attn_res_block_size"):
        return None
    hidden, vocabulary = text.integer("hidden_size"), text.integer("vocab_size")
    model = "language_model.model"
    found: Shapes = {f"{model}.embed_tokens.weight": (vocabulary, hidden)}
    for index, linear in enumerate(_linear_layers(text)):
        layer = _layer(text, linear, dense=index < text.integer("first_k_dense_replace", minimum=0))
        found |= {f"{model}.layers.{index}.{name}": shape for name, shape in layer.items()}
    found |= {f"{model}.norm.weight": (hidden,), **_residual(f"{model}.output_attn", hidden)}
    if not config.boolean("tie_word_embeddings", False):
        found["language_model.lm_head.weight"] = (vocabulary, hidden)
    return {**found, **_tower(tower, hidden)}


def _says(c: ConfigReader, expected: dict[str, object]) -> bool:
    return all(c.mapping.get(key) == value for key, value in expected.items())


def _linear_layers(c: ConfigReader) -> list[bool]:
    """Whether each layer has linear attention. Raises InputError for a layer that is in neither list, or in both."""
    kinds = c.section("linear_attn_config")
    depth = c.integer("num_hidden_layers", maximum=2**12)
    lists = [kinds.mapping.get(key) for key in ("kda_layers", "full_attn_layers")]
    given = [number for numbers in lists if isinstance(numbers, list) for number in numbers]
    if any(type(number) is not int for number in given) or sorted(given) != list(range(1, depth + 1)):
        raise InputError(
            f"{kinds.origin}: 'kda_layers' and 'full_attn_layers' must have each of the {depth} layers once, counted from 1. "
            "Use the config.json published with the model."
        )
    linear = set(lists[0] or ())
    return [number in linear for number in range(1, depth + 1)]


def _residual(prefix: str, hidden: int) -> Shapes:
    """Attention over the residuals of blocks: a norm of them and one query."""
    return {f"{prefix}_res_norm.weight": (hidden,), f"{prefix}_res_proj.weight": (1, hidden)}


def _layer(c: ConfigReader, linear: bool, dense: bool) -> Shapes:
    hidden = c.integer("hidden_size")
    found = {**(_delta_attention(c) if linear else _latent_attention(c)), **norms(c)}
    found |= {**_residual("self_attention", hidden), **_residual("mlp", hidden)}
    return {**found, **(mlp("mlp", hidden, c.integer("intermediate_size")) if dense else _experts(c))}


def _delta_attention(c: ConfigReader) -> Shapes:
    """Kimi delta attention. `A_log` has a value for each column of a head in the checkpoint; its code uses one for each head."""
    kinds, hidden = c.section("linear_attn_config"), c.integer("hidden_size")
    heads, head = kinds.integer("num_heads"), kinds.integer("head_dim", maximum=2**14)
    inner, kernel = heads * head, kinds.integer("short_conv_kernel_size", maximum=2**10)
    sizes = dict.fromkeys(("q_proj", "k_proj", "v_proj", "g_proj"), (inner, hidden))
    sizes |= {"f_a_proj": (head, hidden), "f_b_proj": (inner, head), "b_proj": (heads, hidden), "o_proj": (hidden, inner)}
    found = linears("self_attn", sizes)
    found |= {f"self_attn.{name}_conv1d.weight": (inner, 1, kernel) for name in ("q", "k", "v")}
    return {**found, "self_attn.A_log": (head,), "self_attn.dt_bias": (inner,), "self_attn.o_norm.weight": (head,)}


def _latent_attention(c: ConfigReader) -> Shapes:
    """DeepSeek's latent attention, with a gate of its output."""
    hidden, heads, q_rank = c.integer("hidden_size"), c.integer("num_attention_heads"), c.integer("q_lora_rank")
    rank, rope = c.integer("kv_lora_rank"), c.integer("qk_rope_head_dim")
    nope, value = c.integer("qk_nope_head_dim"), c.integer("v_head_dim")
    sizes = {
        "q_a_proj": (q_rank, hidden),
        "q_b_proj": (heads * (nope + rope), q_rank),
        "kv_a_proj_with_mqa": (rank + rope, hidden),
        "kv_b_proj": (heads * (nope + value), rank),
        "g_proj": (heads * value, hidden),
        "o_proj": (hidden, heads * value),
    }
    found = linears("self_attn", sizes)
    return {**found, "self_attn.q_a_layernorm.weight": (q_rank,), "self_attn.kv_a_layernorm.weight": (rank,)}


def _experts(c: ConfigReader) -> Shapes:
    """Routed experts between projections to a narrower width and back, and shared ones at the full width."""
    hidden, narrow, width = c.integer("hidden_size"), c.integer("routed_expert_hidden_size"), c.integer("moe_intermediate_size")
    count, block = c.integer("num_experts"), "block_sparse_moe"
    sizes = {"gate": (count, hidden), "routed_expert_down_proj": (narrow, hidden), "routed_expert_up_proj": (hidden, narrow)}
    found = {
        **linears(block, sizes),
        f"{block}.gate.e_score_correction_bias": (count,),
        f"{block}.routed_expert_norm.weight": (narrow,),
        **mlp(f"{block}.shared_experts", hidden, width * c.integer("num_shared_experts")),
    }
    found |= {f"{block}.experts.{name}.weight": (count, width, narrow) for name in ("w1", "w3")}
    return {**found, f"{block}.experts.w2.weight": (count, narrow, width)}


def _tower(c: ConfigReader, text: int) -> Shapes:
    """A tower without biases, and a projector of merged patches. Positions in time are computed, not learned."""
    width, inner, qkv = c.integer("vt_hidden_size"), c.integer("vt_intermediate_size"), c.integer("qkv_hidden_size")
    patch, tower = c.integer("patch_size"), "vision_tower"
    grid = (c.integer("init_pos_emb_height"), c.integer("init_pos_emb_width"))
    found: Shapes = {
        f"{tower}.patch_embed.proj.weight": (width, 3, patch, patch),
        f"{tower}.patch_embed.pos_emb.weight": (*grid, width),
        f"{tower}.encoder.final_layernorm.weight": (width,),
    }
    for index in range(c.integer("vt_num_hidden_layers", maximum=2**12)):
        sizes = {"wqkv": (3 * qkv, width), "wo": (width, qkv), "mlp.fc0": (inner, width), "mlp.fc1": (width, inner)}
        block = f"{tower}.encoder.blocks.{index}"
        found |= {**linears(block, sizes), f"{block}.norm0.weight": (width,), f"{block}.norm1.weight": (width,)}
    sides = c.mapping.get("merge_kernel_size")
    if not isinstance(sides, list) or len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise InputError(f"{c.origin}: 'merge_kernel_size' must be two numbers of patches. Correct the file.")
    merged = c.integer("mm_hidden_size") * sides[0] * sides[1]
    found |= linears("mm_projector", {"proj.0": (merged, merged), "proj.2": (text, merged)})
    return {**found, "mm_projector.post_norm.weight": (text,)}
