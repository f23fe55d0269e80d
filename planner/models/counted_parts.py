"""Parts of which lists of weights are put together: shapes by name, sizes from the config."""

from collections.abc import Mapping
from typing import TypeAlias

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.config import ConfigReader

Shapes: TypeAlias = dict[str, tuple[int, ...]]


def at(c: ConfigReader, key: str, index: int) -> object:
    """The entry of a layer in a list of the config. Raises InputError where the list is missing or too short."""
    given = c.mapping.get(key)
    if not isinstance(given, list | str) or index >= len(given):
        raise InputError(f"{c.origin}: {key!r} must have an entry for each layer. Use the config.json published with the model.")
    return given[index]


def norms(c: ConfigReader) -> Shapes:
    """Norms before attention and before the MLP."""
    hidden = c.integer("hidden_size")
    return {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}


def linears(prefix: str, sizes: Mapping[str, tuple[int, int]]) -> Shapes:
    """Linear layers without biases, by name: outputs and inputs."""
    return {f"{prefix}.{name}.weight": shape for name, shape in sizes.items()}


def mlp(prefix: str, hidden: int, width: int) -> Shapes:
    """A gated MLP."""
    return linears(prefix, {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)})


def experts(prefix: str, count: int, hidden: int, width: int) -> Shapes:
    """Gated MLPs of a mixture of experts, stacked as transformers has them."""
    return {
        f"{prefix}.experts.gate_up_proj": (count, 2 * width, hidden),
        f"{prefix}.experts.down_proj": (count, hidden, width),
    }


def pair(prefix: str, width: int) -> Shapes:
    """Norms of queries and keys."""
    return {f"{prefix}.q_norm.weight": (width,), f"{prefix}.k_norm.weight": (width,)}
