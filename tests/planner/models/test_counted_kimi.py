"""Kimi K3's weights against its published checkpoint, whose sizes are here so that nothing needs to be at hand."""

from math import prod
from typing import Any

import pytest

from tuneplan.planner.errors import InputError, NotModelledError
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.counted import parameters, weight_shapes
from tuneplan.planner.models.registry import read_spec

FULL = [*range(4, 93, 4), 93]
TEXT: dict[str, Any] = {
    "attn_res_block_size": 12,
    "first_k_dense_replace": 1,
    "hidden_size": 7168,
    "intermediate_size": 33792,
    "kv_lora_rank": 512,
    "latent_moe_use_norm": True,
    "linear_attn_config": {
        "full_attn_layers": FULL,
        "head_dim": 128,
        "kda_layers": [number for number in range(1, 94) if number not in FULL],
        "num_heads": 96,
        "short_conv_kernel_size": 4,
        "use_full_rank_gate": True,
    },
    "mla_use_output_gate": True,
    "model_type": "kimi_linear",
    "moe_intermediate_size": 3072,
    "moe_layer_freq": 1,
    "moe_router_activation_func": "sigmoid",
    "num_attention_heads": 96,
    "num_experts": 896,
    "num_hidden_layers": 93,
    "num_nextn_predict_layers": 0,
    "num_shared_experts": 2,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "routed_expert_hidden_size": 3584,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
    "vocab_size": 163840,
}
TOWER: dict[str, Any] = {
    "attn_bias": False,
    "init_pos_emb_height": 64,
    "init_pos_emb_width": 64,
    "linear_bias": False,
    "merge_kernel_size": [2, 2],
    "mlp_type": "mlp2",
    "mm_hidden_size": 1024,
    "mm_projector_type": "patchmergerv2",
    "norm_type": "rmsnorm",
    "patch_embed_proj_bias": False,
    "patch_size": 14,
    "pos_emb_type": "divided_fixed",
    "qkv_hidden_size": 1536,
    "vt_hidden_size": 1024,
    "vt_intermediate_size": 4096,
    "vt_num_hidden_layers": 27,
}
CONFIG = {"model_type": "kimi_k3", "text_config": TEXT, "vision_config": TOWER}
IN_FP32 = ("_conv1d.weight", ".A_log", ".dt_bias", ".o_norm.weight", ".e_score_correction_bias")
"""Ends of names that the checkpoint has in fp32 (506 weights). Experts are in MXFP4, all others in bf16."""


def reader(changes: dict[str, Any] | None = None, part: str = "text_config") -> ConfigReader:
    """The published sizes, with changes of a part."""
    return ConfigReader({**CONFIG, part: {**CONFIG[part], **(changes or {})}}, "config.json")  # type: ignore[dict-item]


def test_totals_of_the_checkpoint() -> None:
    """Parameters by dtype, tensors and bytes are those of the index and the headers of the published files."""
    shapes = weight_shapes(reader())
    assert shapes is not None
    sizes = {"MXFP4": 0, "F32": 0, "BF16": 0}
    tensors = 0
    for name, shape in shapes.items():
        stacked = ".experts." in name
        sizes["MXFP4" if stacked else "F32" if name.endswith(IN_FP32) else "BF16"] += prod(shape)
        tensors += 2 * shape[0] if stacked else 1  # an expert has packed values and scales
    assert {"MXFP4": 2_722_740_830_208, "F32": 11_122_432, "BF16": 57_179_884_544} == sizes
    assert 497_220 == tensors
    scales = sizes["MXFP4"] // 32
    assert 1_560_860_324_864 == sizes["MXFP4"] // 2 + scales + 4 * sizes["F32"] + 2 * sizes["BF16"]
    assert 2_779_931_837_184 == parameters(reader())


def test_parts_of_the_checkpoint() -> None:
    """The tower's size is that of the model card (401M), and a layer of each kind has the shapes in the files' headers."""
    shapes = weight_shapes(reader()) or {}
    assert 401_214_464 == sum(prod(shape) for name, shape in shapes.items() if name.startswith("vision_tower."))
    layer = "language_model.model.layers.12."
    found = {name.removeprefix(layer): shape for name, shape in shapes.items() if name.startswith(layer)}
    moe, attention = "block_sparse_moe", "self_attn"
    assert {
        f"{moe}.experts.w1.weight": (896, 3072, 3584),
        f"{moe}.experts.w2.weight": (896, 3584, 3072),
        f"{moe}.experts.w3.weight": (896, 3072, 3584),
        f"{moe}.gate.e_score_correction_bias": (896,),
        f"{moe}.gate.weight": (896, 7168),
        f"{moe}.routed_expert_down_proj.weight": (3584, 7168),
        f"{moe}.routed_expert_norm.weight": (3584,),
        f"{moe}.routed_expert_up_proj.weight": (7168, 3584),
        f"{moe}.shared_experts.down_proj.weight": (7168, 6144),
        f"{moe}.shared_experts.gate_proj.weight": (6144, 7168),
        f"{moe}.shared_experts.up_proj.weight": (6144, 7168),
        "input_layernorm.weight": (7168,),
        "mlp_res_norm.weight": (7168,),
        "mlp_res_proj.weight": (1, 7168),
        "post_attention_layernorm.weight": (7168,),
        "self_attention_res_norm.weight": (7168,),
        "self_attention_res_proj.weight": (1, 7168),
        f"{attention}.A_log": (128,),
        f"{attention}.b_proj.weight": (96, 7168),
        f"{attention}.dt_bias": (12288,),
        f"{attention}.f_a_proj.weight": (128, 7168),
        f"{attention}.f_b_proj.weight": (12288, 128),
        f"{attention}.g_proj.weight": (12288, 7168),
        f"{attention}.k_conv1d.weight": (12288, 1, 4),
        f"{attention}.k_proj.weight": (12288, 7168),
        f"{attention}.o_norm.weight": (128,),
        f"{attention}.o_proj.weight": (7168, 12288),
        f"{attention}.q_conv1d.weight": (12288, 1, 4),
        f"{attention}.q_proj.weight": (12288, 7168),
        f"{attention}.v_conv1d.weight": (12288, 1, 4),
        f"{attention}.v_proj.weight": (12288, 7168),
    } == found


def test_the_refusal_says_the_size() -> None:
    """It cannot be planned, but how large it is is known."""
    with pytest.raises(NotModelledError, match=r"does not know yet \(2,779,931,837,184 parameters, which it does know\)"):
        read_spec("x", reader())


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"mla_use_output_gate": False}, "text_config"),
        ({"linear_attn_config": {**TEXT["linear_attn_config"], "use_full_rank_gate": False}}, "text_config"),
        ({"attn_res_block_size": None}, "text_config"),
        ({"attn_bias": True}, "vision_config"),
    ],
)
def test_variants_that_were_never_published(changes: dict[str, Any], part: str) -> None:
    """Nothing is said of weights that no checkpoint shows."""
    assert parameters(reader(changes, part)) is None


@pytest.mark.parametrize(
    ("changes", "part", "message"),
    [
        ({"num_hidden_layers": 94}, "text_config", "must have each of the 94 layers once, counted from 1"),
        ({"linear_attn_config": 3}, "text_config", "'linear_attn_config' is 3, but must be an object"),
        (
            {"linear_attn_config": {**TEXT["linear_attn_config"], "kda_layers": ["one"]}},
            "text_config",
            "must have each of the 93 layers once",
        ),
        ({"q_lora_rank": None}, "text_config", "the key 'q_lora_rank' is missing"),
        ({"merge_kernel_size": [2]}, "vision_config", "'merge_kernel_size' must be two numbers of patches"),
    ],
)
def test_broken_configs(changes: dict[str, Any], part: str, message: str) -> None:
    """The key is named."""
    with pytest.raises(InputError, match=message):
        parameters(reader(changes, part))
