"""The cache that peft makes of prefixes for an encoder-decoder.

Mirrors `get_prompt` of peft 0.21 peft_model.py for models of two stacks and `EncoderDecoderCache` of transformers 5.23: the
prefixes of L layers (as many as the encoder has) are doubled and split into four tensors a layer, of which the decoder's
attention to its own tokens gets two; the other two are copied and dropped. So layer i has the prefix of layer 2i modulo L, and
where L is even half of what is trained has no effect.
"""

from typing import TYPE_CHECKING

from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Size, Tensor, round_block

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly

SCRATCH = 6
"""Prefixes of keys or values that stacking one layer's gradients holds for a moment: two of them, then four."""


def read_by(layers: int, readers: int) -> set[int]:
    """Which of the prefixes of `layers` layers the decoder's `readers` layers have."""
    return {2 * index % layers for index in range(readers)}


def cached(model: "Assembly", prefixes: Tensor, layers: int, used: int) -> Tensor:
    """Copies of the prefixes in a cache; `prefixes` `(batch, rows, 2 * layers * width)`.

    Args:
        model: where ops are recorded.
        prefixes: all layers beside each other.
        layers: for which they are.
        used: layers of the decoder; the copies of the others stay in the cache as they are.
    """
    tape = model.tape
    whole = round_block(prefixes.nbytes)
    each = round_block(prefixes.nbytes // (2 * layers))
    doubled = tape.fresh((*prefixes.shape[:-1], 2 * prefixes.shape[-1]), prefixes.dtype, True)
    tape.record("cat", (prefixes,), doubled, gradients=(Gradient(prefixes, whole),))
    out = tape.fresh(prefixes.shape, prefixes.dtype, True)
    out.storage.nbytes = 2 * used * each
    # every layer's gradients are stacked and put into zeros of its four, and then those of all layers are joined
    joined: Size = 4 * layers * each
    tape.record("cache", (doubled,), out, gradients=(Gradient(doubled, joined, scratch=joined),), moved=2 * prefixes.nbytes)
    tape.ops[-1].pieces = 2 * used
    for pieces, kept in ((2 * (layers - used), True), (2 * layers, False)):
        if pieces:
            rest = tape.fresh(prefixes.shape, prefixes.dtype, False)
            rest.storage.nbytes = pieces * each
            tape.record("cache", (doubled,), rest, moved=2 * pieces * each)
            tape.ops[-1].pieces = pieces
            if kept:
                tape.outputs.append(rest.storage)
    tape.hold(doubled)
    return out
