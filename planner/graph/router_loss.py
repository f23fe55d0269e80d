"""The loss that balances the experts of a mixture: ops over what the routers of all layers gave.

Mirrors `load_balancing_loss_func` of transformers 5.23 (models/mixtral/modeling_mixtral.py; its copies in the relatives are
equal), by equations 4 to 6 of Fedus et al. 2021 (Switch Transformers). T tokens, E experts, k experts a token, L layers.
"""

from collections.abc import Sequence

from tuneplan.planner.graph.tape import Gradient, Op, Tape
from tuneplan.planner.graph.tensor import ACTIVATIONS, Tensor, tensor_bytes

LAUNCHES = 9
"""Kernels for each layer beside the softmax: top k, cast and count of the choices, cast and sum of the probabilities, sums."""
MASKED_LAUNCHES = 14
"""The same where a mask of the tokens weighs them."""


def balanced(tape: Tape, loss: Tensor, routers: Sequence[Tensor], top_k: int, masked: bool) -> Tensor:
    """`loss += coefficient * load_balancing_loss_func(...)`: the probabilities of all routers stay for the backward.

    The gradients of all logits are there before the head's backward begins, and wait for those of the layers (`Block.side`).

    Args:
        tape: of the head.
        loss: of the language model; what is added goes into it.
        routers: logits `(T, E)` of every layer; they need a gradient where it finds its way back into the layer.
        top_k: experts of a token.
        masked: a mask tells tokens from padding.
    """
    outer, tape.scope, category, tape.category = tape.scope, "router_loss", tape.category, ACTIVATIONS
    tokens, experts = routers[0].shape
    mask = tape.record("mask", (), tape.fresh((tokens,), "fp32", False)) if masked else None
    sums = [_layer(tape, logits, top_k, mask) for logits in routers]
    total = tape.fresh((1,), "fp32", any(each.requires_grad for each in sums))
    small = tensor_bytes((experts,), "fp32")
    tape.record("mean", tuple(sums), total, gradients=tuple([Gradient(each, small) for each in sums]))
    tape.scope, tape.category = outer, category
    out = Tensor(loss.storage, loss.shape, loss.dtype, loss.requires_grad or total.requires_grad)
    passed = tuple([Gradient(each, None) for each in (loss, total) if each.requires_grad])
    tape.ops.append(Op("router_loss.add_", (loss.storage, total.storage), out, gradients=passed))
    return out


def _layer(tape: Tape, x: Tensor, top_k: int, mask: Tensor | None) -> Tensor:
    """The probabilities of a layer's router, summed over the tokens: `(E,)`."""
    tokens, experts = x.shape
    dtype = "fp32" if tape.autocast else x.dtype
    needs = x.requires_grad
    chances = tape.fresh(x.shape, dtype, needs)
    wide = tensor_bytes(x.shape, "fp32")
    own = tensor_bytes(x.shape, x.dtype)
    copied = dtype != x.dtype  # by autocast; so is the gradient, when the probabilities are gone
    gradient = Gradient(x, own, scratch=wide - own if copied else None, moved=3 * chances.nbytes)
    tape.record("softmax", (x,), chances, saved=(chances,), gradients=(gradient,), scratch=wide if copied else None)
    # its best experts and those of the layer before, which are counted; then its probabilities in fp32, weighed
    chosen = 2 * (tensor_bytes((tokens, top_k), dtype) + tensor_bytes((tokens, top_k), "int64"))
    counted = tensor_bytes((tokens, top_k), "int32" if mask is None else "fp32")
    summed = (wide if dtype != "fp32" else 0) + (0 if mask is None else wide)
    total = tape.fresh((experts,), "fp32", needs)
    # that of a sum is a view, of which a mask or a cast makes a tensor
    made = dtype != "fp32" or mask is not None
    weighed = wide if mask is not None and dtype != "fp32" else None
    gradient = Gradient(chances, chances.storage.nbytes if made else None, scratch=weighed, moved=3 * chances.nbytes)
    tape.record(
        "sums",
        (chances,) if mask is None else (chances, mask),
        total,
        saved=() if mask is None else (mask,),
        gradients=(gradient,),
        scratch=chosen + counted + (summed > counted) * (summed - counted),
        moved=3 * chances.nbytes,
    )
    tape.ops[-1].launches = LAUNCHES if mask is None else MASKED_LAUNCHES
    return total
