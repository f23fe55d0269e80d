"""From a config.json to the layers of the cache: real configs, the real cache of transformers, and refusals."""

from pathlib import Path
from typing import Any

import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.lookup import load
from tuneplan.planner.serving.kv_cache import CACHE_FORMATS
from tuneplan.planner.serving.read_kv import read_kv

BF16 = CACHE_FORMATS["bf16"]
CONFIGS = Path(__file__).parents[3].parent / "shared" / "data" / "model_configs"
PLAIN = {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
MLA = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "kv_lora_rank": 512, "qk_rope_head_dim": 64}


def cache(**config: Any) -> Any:
    """The cache of a config."""
    return read_kv(ConfigReader(config, "config"))


# Published: bytes of a token in 16 bits and layers by kind, counted by hand from the keys of each config.json
PUBLISHED = {
    "deepseek-ai--DeepSeek-V3.json": (61 * 576 * 2, {"latent": 61}),
    "deepseek-ai--DeepSeek-V3.2.json": (61 * (576 * 2 + 132), {"latent": 61}),
    "zai-org--GLM-5.1.json": (78 * (576 * 2 + 132), {"latent": 78}),
    "Qwen--Qwen3.5-27B.json": (16 * 4 * 512 * 2, {"state": 48, "full": 16}),
    "openai--gpt-oss-20b.json": (24 * 8 * 128 * 2, {"sliding": 12, "full": 12}),
    "google--gemma-4-26B-A4B.json": (25 * 8 * 512 * 2 + 5 * 2 * 1024 * 2, {"sliding": 25, "full": 5}),
    "meta-llama--Llama-4-Scout-17B-16E-Instruct.json": (48 * 8 * 256 * 2, {"chunked": 36, "full": 12}),
    "nvidia--Llama-3_3-Nemotron-Super-49B-v1.json": (49 * 8 * 256 * 2, {"full": 49}),
    "nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16.json": (6 * 2 * 256 * 2, {"state": 23, "full": 6}),
    "moonshotai--Kimi-K3.json": (24 * 576 * 2, {"state": 69, "latent": 24}),
    "XiaomiMiMo--MiMo-V2-Flash.json": (9 * 4 * 320 * 2 + 39 * 8 * 320 * 2, {"full": 9, "sliding": 39}),
    "mistralai--Mixtral-8x7B-v0.1.json": (32 * 8 * 256 * 2, {"full": 32}),
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_configs(name: str) -> None:
    """Architectures with latent, sliding, chunked, linear and mixed layers, from their own config.json."""
    if not (CONFIGS / name).exists():
        pytest.skip("the published configs are not here")
    found = read_kv(load(str(CONFIGS / name))[1])
    assert PUBLISHED[name] == (found.bytes_per_token(BF16), found.summary())
    assert () == found.notes


def test_what_is_not_known_is_refused() -> None:
    """A compressed attention, an encoder-decoder, an unknown kind of layer, and a window without layers."""
    for config, word in (
        ({**PLAIN, "compress_ratios": [4, 128]}, "compress_ratios"),
        ({**PLAIN, "is_encoder_decoder": True}, "encoder-decoder"),
        ({**PLAIN, "layer_types": ["full_attention"] * 3 + ["moon"]}, "moon"),
        ({**PLAIN, "layer_types": ["full_attention"]}, "list of 4"),
        ({**PLAIN, "layer_types": "full"}, "list of 4"),
        ({**PLAIN, "sliding_window": 128, "model_type": "own"}, "which layers"),
        ({**PLAIN, "num_key_value_heads": 3}, "multiple"),
        ({**PLAIN, "hidden_size": 63}, "head_dim"),
        ({**PLAIN, "hybrid_override_pattern": "M?*", "mamba_num_heads": 1, "mamba_head_dim": 1, "ssm_state_size": 1}, "pattern"),
        ({**PLAIN, "block_configs": [1]}, "list of 4"),
        ({**PLAIN, "hybrid_layer_pattern": [2, 0, 0, 0]}, "0 or 1"),
        ({**MLA, "linear_attn_config": {"num_heads": 1, "head_dim": 1}}, "full_attn_layers"),
        ({}, "num_hidden_layers"),
    ):
        with pytest.raises(InputError, match=word):
            cache(**config)


def test_unknown_model_types_are_read_with_a_note() -> None:
    """Common names of keys are enough, but the report says so."""
    assert "no rule of its own" in cache(model_type="own", **PLAIN).notes[0]
    assert () == cache(model_type="llama", **PLAIN).notes


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"n_layer": 2, "n_embd": 64, "n_head": 4, "model_type": "gpt2"}, 2 * 4 * 32 * 2),
        ({"n_layer": 2, "n_embd": 64, "n_head": 4, "multi_query": True, "model_type": "gpt_bigcode"}, 2 * 32 * 2),
        ({"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "multi_query_group_num": 2}, 2 * 2 * 32 * 2),
        ({**MLA, "model_type": "deepseek_v3"}, 2 * 576 * 2),
        ({**MLA, "index_head_dim": 128}, 2 * (576 * 2 + 132)),
        ({**MLA, "index_head_dim": 128, "indexer_types": ["full", "shared"]}, 2 * 576 * 2 + 132),
        ({"text_config": {**PLAIN}, "model_type": "outer"}, 4 * 2 * 32 * 2),
        ({**PLAIN, "num_kv_shared_layers": 1}, 3 * 2 * 32 * 2),
    ],
)
def test_older_and_newer_names_of_keys(config: dict[str, Any], expected: int) -> None:
    """Multi-query, group numbers, latents with an index, nested configs and shared layers."""
    assert expected == cache(**config).bytes_per_token(BF16)


def test_catalog_models_agree_with_their_specs() -> None:
    """Every model known by name has a cache without a note."""
    for name in ("7b", "70b", "8b", "mistral-7b-v0.1", "qwen3-8b", "granite-3.1-8b-instruct"):
        assert () == read_kv(load(name)[1]).notes


REAL: dict[str, dict[str, Any]] = {
    "LlamaConfig": {},
    "Qwen3Config": {"head_dim": 32},
    "MistralConfig": {"sliding_window": 8},
    "Qwen2Config": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "Gemma2Config": {"head_dim": 16, "sliding_window": 8},
    "Gemma3TextConfig": {"head_dim": 16, "sliding_window": 8},
    "GptOssConfig": {"head_dim": 16, "sliding_window": 8, "num_local_experts": 4},
    "Phi3Config": {"pad_token_id": 0},
    "OPTConfig": {"ffn_dim": 64, "word_embed_proj_dim": 64, "num_key_value_heads": 4},
    "GPTNeoXConfig": {"num_key_value_heads": 4},
    "GPTBigCodeConfig": {"multi_query": True, "n_layer": 4, "n_embd": 64, "n_head": 4},
}


@pytest.mark.traced
@pytest.mark.parametrize("name", list(REAL))
def test_the_real_cache_of_transformers(name: str) -> None:
    """A small model's own cache after a prompt of 6 tokens has the bytes that are counted, before any window is full."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    common = {**PLAIN, "num_hidden_layers": 7, "intermediate_size": 64, "vocab_size": 50}
    own = REAL[name]
    config = getattr(transformers, name)(**(own if "n_layer" in own else {**common, **own}))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        output = model(torch.zeros((1, 6), dtype=torch.long), use_cache=True)
    real = sum(t.numel() * 2 for layer in output.past_key_values.layers for t in (layer.keys, layer.values))
    found = read_kv(ConfigReader(config.to_dict(), name))
    assert real == found.sequence_bytes(6, BF16, block=1)
