"""Bytes that cases need: what any implementation must move, and the dense results."""

from tuneplan.kernels.bench.cases import Case
from tuneplan.kernels.bench.weights import NESTED_BLOCK

_ITEM = {"bf16": 2, "fp16": 2, "fp32": 4}


def item(case: Case) -> int:
    """Bytes of a value of the case's dtype."""
    return _ITEM[case.dtype]


def stored(case: Case) -> int:
    """Bytes of the quantized weight with its scales."""
    weights, rows = case.shape.weights, case.shape.out_features
    if case.format == "int8_rows":
        return weights + 4 * rows
    blocks = -(-weights // case.blocksize)
    if case.format == "int8_blocks":
        return weights + 4 * blocks
    scales = blocks + 4 * -(-blocks // NESTED_BLOCK) if case.nested else 4 * blocks
    return (weights + 1) // 2 + scales


def dense(case: Case) -> int:
    """Bytes of the dense weight."""
    return case.shape.weights * item(case)


def dequantized(case: Case) -> int:
    """The quantized weight read once, the dense one written once."""
    return stored(case) + dense(case)


def product(case: Case) -> int:
    """The quantized weight and the activations read once, the result written once."""
    return stored(case) + case.tokens * (case.shape.out_features + case.shape.in_features) * item(case)


def trained(case: Case) -> int:
    """Forward and backward of a frozen layer with its adapter.

    The weight is read twice; x, y, dy and dx are moved once; the adapter is read and its gradients are written.
    """
    adapter = case.rank * (case.shape.out_features + case.shape.in_features) * item(case)
    activations = 2 * case.tokens * (case.shape.out_features + case.shape.in_features) * item(case)
    return 2 * stored(case) + activations + 2 * adapter


def trained_flops(case: Case) -> int:
    """Products of `trained`: y and dx of the frozen weight; the adapter's two of the forward and four of the backward."""
    n, k, m, r = case.shape.out_features, case.shape.in_features, case.tokens, case.rank
    return 4 * m * n * k + 6 * m * r * (n + k)


def product_flops(case: Case) -> int:
    """A product of a few tokens; a multiply-add is 2 FLOPs."""
    return 2 * case.tokens * case.shape.weights
