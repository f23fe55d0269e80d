"""What encoder-decoders share: masks of the decoder, and which prefixes peft can put before its keys and values.

Mirrors transformers 5.23 masking_utils.py as models/t5 and models/bart call it, and `get_prompt` of peft 0.21 peft_model.py.
"""

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph.tensor import Storage, Tensor, tensor_bytes
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import cached
from tuneplan.planner.models.spec import ModelSpec


def decoder_masks(model: Assembly, dtype: str, ones: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Masks of the decoder's attention to its own tokens and to what the encoder made; each of none or one tensor.

    Eager attention has one of its own tokens in any case; sdpa where a prefix or padding stands before them.

    Args:
        model: where ops are recorded.
        dtype: of the hidden states.
        ones: the decoder's code makes a mask of ones where it is given none, which sdpa gets for each sequence (BART).
    """
    settings, tape = model.settings, model.tape
    rows, length = model.token_shape[0], settings.target_length
    prefix = model.method.prefix_length
    kind = dtype if settings.attention == "eager" else "bool"
    own: tuple[Tensor, ...] = ()
    if settings.attention == "eager" or (settings.attention == "sdpa" and (prefix or (settings.padded and ones))):
        shape = (rows, 1, length, length + prefix)
        stored = shape if ones or settings.attention == "eager" else (1, *shape[1:])
        mask = Tensor(Storage(tensor_bytes(stored, kind), tape.category), shape, kind)
        own = (tape.record("causal_mask", (), mask, scratch=tensor_bytes(stored, "bool")),)
    if not settings.padded or settings.attention == "flash":
        return own, ()
    shape = (rows, 1, length, settings.seq_len + model.method.virtual_tokens)
    cross = tape.fresh(shape, kind, False)
    return own, (tape.record("cross_mask", (), cross, scratch=tensor_bytes(shape, "bool")),)


def from_cache(model: Assembly, keys: Tensor, values: Tensor, cross: bool) -> tuple[Tensor, Tensor]:
    """Keys and values of a decoder's layer as its attention gets them out of the cache.

    `cross`: of what the encoder made, before which no prefix stands.
    """
    if cross or not model.method.prefix_length:
        return cached(model, keys), cached(model, values)
    for part in model.method.parts:
        keys, values = part.keys_values(model, keys, values)
    return keys, values


def check_prefixes(model: Assembly, spec: ModelSpec, layers: int, heads: int, head_dim: int) -> None:
    """Raise InputError for prefixes that do not fit the decoder: peft makes them in the encoder's shape.

    Args:
        model: with its method.
        spec: the encoder's dimensions.
        layers: of the decoder.
        heads: of the decoder.
        head_dim: of the decoder.
    """
    if not model.method.prefix_length:
        return
    rest = "; use prompt_tuning or lora"
    encoders = spec.num_attention_heads
    if spec.hidden_size % encoders or (encoders, spec.hidden_size // encoders) != (heads, head_dim):
        raise InputError(
            f"{spec.id}: peft splits prefixes of the model's width {spec.hidden_size} into the encoder's {encoders} heads, which "
            f"do not fit the decoder's {heads} heads of {head_dim}{rest}"
        )
    if layers > spec.num_hidden_layers:
        raise InputError(
            f"{spec.id}: peft makes prefixes for as many layers as the encoder has, {spec.num_hidden_layers}, and the decoder "
            f"has {layers}{rest}"
        )
