"""Decoders whose layers differ in what they attend to: all earlier tokens, or those of a sliding window."""

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.config import ConfigReader

SLIDING, FULL = "sliding_attention", "full_attention"


def layer_types(config: ConfigReader, layers: int, full_every: int, key: str = "sliding_window_pattern") -> tuple[str, ...]:
    """The kind of each layer: as the config lists them, or every n-th full.

    Args:
        config: the config.json.
        layers: how many there are.
        full_every: n where the config does not say; 0 for no sliding layers at all.
        key: where the config has n, "" for nowhere.

    Raises:
        InputError: the list is not one of known kinds, one for each layer.
    """
    given = config.mapping.get("layer_types")
    if given is None:
        step = config.integer(key, full_every, minimum=0) if key else full_every
        return tuple([SLIDING if step and (index + 1) % step else FULL for index in range(layers)])
    if not isinstance(given, list) or len(given) != layers or any(kind not in (SLIDING, FULL) for kind in given):
        raise InputError(
            f"{config.origin}: 'layer_types' must be a list of {layers} of {SLIDING!r} and {FULL!r}, one for each layer"
        )
    return tuple(given)


def window_of(kinds: tuple[str, ...], layer: int, window: int | None) -> int | None:
    """The window of a layer, None for full attention."""
    return window if kinds[layer] == SLIDING else None
