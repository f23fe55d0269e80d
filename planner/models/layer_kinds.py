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


RECURRENT, ATTENTION, MLP, EXPERTS = "linear_attention", "full_attention", "mlp", "moe"
_OLD_NAMES = {"mamba": RECURRENT, "attention": ATTENTION, "M": RECURRENT, "*": ATTENTION, "-": MLP, "E": EXPERTS}


def mixers(config: ConfigReader, layers: int, known: tuple[str, ...], default: str) -> tuple[str, ...]:
    """What each layer of a hybrid is, by transformers' names.

    Args:
        config: the config.json, which lists them as `layer_types`, `layers_block_type` or `hybrid_override_pattern`.
        layers: how many there are; 0 for as many as are listed.
        known: kinds that the architecture has.
        default: of all layers where nothing is listed; "" for none.

    Raises:
        InputError: no list, one of unknown kinds, or one of another length.
    """
    keys = ("layer_types", "layers_block_type", "hybrid_override_pattern")
    key = next((name for name in keys if config.has(name)), keys[0])
    given = config.mapping.get(key)
    config.asked.add(key)
    if given is None and default:
        return (default,) * layers
    listed = given if isinstance(given, list) or (isinstance(given, str) and key == keys[2]) else []
    kinds = tuple([_OLD_NAMES.get(kind, kind) if isinstance(kind, str) else "" for kind in listed])
    if not kinds or any(kind not in known for kind in kinds) or (layers and len(kinds) != layers):
        number = str(layers) if layers else "layers"
        raise InputError(f"{config.origin}: {key!r} must be a list of {number} of {', '.join(known)}, one for each layer")
    return kinds
