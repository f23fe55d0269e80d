"""States of layers whose cache does not grow."""

from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.serving.states import kimi_state, linear_state, mamba_state


def test_gated_delta_net() -> None:
    """Qwen3.5's form: an fp32 matrix of 128 x 128 for each of 32 value heads, and three inputs of the convolution."""
    config = {
        "linear_num_key_heads": 16,
        "linear_key_head_dim": 128,
        "linear_num_value_heads": 32,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
    }
    assert 4 * 32 * 128 * 128 + 2 * 3 * (2 * 16 * 128 + 32 * 128) == linear_state(ConfigReader(config, "c"))
    half = ConfigReader({**config, "mamba_ssm_dtype": "bfloat16"}, "c")
    assert 2 * 32 * 128 * 128 == linear_state(ConfigReader(config, "c")) - linear_state(half)


def test_mamba() -> None:
    """Nemotron-H's form: 64 heads of 64 with 128 states, 16 bits unless the config says otherwise."""
    config = {"mamba_num_heads": 64, "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 8, "conv_kernel": 4}
    assert 2 * 4096 * 128 + 2 * 3 * (4096 + 2 * 8 * 128) == mamba_state(ConfigReader(config, "c"))
    wide = ConfigReader({**config, "mamba_ssm_cache_dtype": "float32"}, "c")
    assert 2 * 4096 * 128 == mamba_state(wide) - mamba_state(ConfigReader(config, "c"))


def test_kimi_delta_attention() -> None:
    """Square fp32 matrices, and three convolutions."""
    config = {"num_heads": 2, "head_dim": 8, "short_conv_kernel_size": 4}
    assert 4 * 2 * 64 + 2 * 3 * 16 * 3 == kimi_state(ConfigReader(config, "c"))
