"""States of layers without a growing cache: linear attention and state space models keep a fixed size for each sequence."""

from tuneplan.planner.models.config import ConfigReader

_FLOAT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def linear_state(config: ConfigReader) -> int:
    """Bytes of a gated delta net's layer: a key x value matrix for each value head, and the convolution's last inputs.

    Yang et al. 2024, Gated Delta Networks; transformers modeling_qwen3_5.py. The matrix is in `mamba_ssm_dtype` (fp32 if
    the config does not say), the convolution in 16 bits.
    """
    keys = config.integer("linear_num_key_heads", maximum=2**16) * config.integer("linear_key_head_dim", maximum=2**14)
    heads = config.integer("linear_num_value_heads", maximum=2**16)
    values = heads * config.integer("linear_value_head_dim", maximum=2**14)
    matrix = config.integer("linear_key_head_dim", maximum=2**14) * values * _state_dtype(config, "mamba_ssm_dtype")
    return matrix + 2 * (2 * keys + values) * (config.integer("linear_conv_kernel_dim", 4, maximum=64) - 1)


def kimi_state(section: ConfigReader) -> int:
    """Bytes of a Kimi delta attention layer: an fp32 matrix for each head, and the last inputs of three convolutions.

    Kimi Team 2025, Kimi Linear (arXiv:2510.26692), section 3: square matrices of `head_dim`.
    """
    heads, width = section.integer("num_heads", maximum=2**16), section.integer("head_dim", maximum=2**14)
    return 4 * heads * width * width + 2 * 3 * heads * width * (section.integer("short_conv_kernel_size", 4, maximum=64) - 1)


def mamba_state(config: ConfigReader) -> int:
    """Bytes of a Mamba-2 layer: heads x head width x state, and the convolution's last inputs.

    Dao and Gu 2024, Transformers are SSMs; transformers modeling_nemotron_h.py. The state is in `mamba_ssm_cache_dtype`,
    16 bits if the config does not say.
    """
    inner = config.integer("mamba_num_heads", maximum=2**16) * config.integer("mamba_head_dim", maximum=2**14)
    size = config.integer("ssm_state_size", maximum=2**14)
    channels = inner + 2 * config.integer("n_groups", 1, maximum=2**14) * size
    state = inner * size * _FLOAT_BYTES.get(config.text("mamba_ssm_cache_dtype", "bfloat16"), 4)
    return state + 2 * channels * (config.integer("conv_kernel", 4, maximum=64) - 1)


def _state_dtype(config: ConfigReader, key: str) -> int:
    return _FLOAT_BYTES.get(config.text(key, "float32"), 4)
