"""Activation functions by the names of transformers: fused kernels, and those that its code writes out.

Mirrors transformers 5.23 activations.py; what autograd saves: torch 2.13 tools/autograd/derivatives.yaml.
"""

from collections.abc import Callable

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.tape import Gradient, Tape
from tuneplan.planner.graph.tensor import Tensor, round_block


def activation(tape: Tape, x: Tensor, kind: str) -> Tensor:
    """The activation `kind` of `x`. Raises KeyError for one that is not in ACTIVATIONS."""
    return ACTIVATIONS[kind](tape, x, kind)


def _of_input(tape: Tape, x: Tensor, kind: str) -> Tensor:
    """One kernel whose backward reads its input (silu, gelu)."""
    return pw.activation(tape, x, kind)


def _of_output(tape: Tape, x: Tensor, kind: str) -> Tensor:
    """One kernel whose backward reads its output (relu, sigmoid, tanh)."""
    out = tape.fresh(x.shape, x.dtype, x.requires_grad)
    gradient = Gradient(x, round_block(x.nbytes), moved=3 * x.nbytes)
    return tape.record(kind, (x,), out, saved=(out,), gradients=(gradient,))


def power(tape: Tape, x: Tensor, kind: str = "pow") -> Tensor:
    """`x ** n`: saves x; the backward holds the lower power and its multiple."""
    full = round_block(x.nbytes)
    out = tape.fresh(x.shape, x.dtype, x.requires_grad)
    gradient = Gradient(x, full, scratch=2 * full, moved=7 * full, launches=3)
    return tape.record(kind, (x,), out, saved=(x,), gradients=(gradient,))


def _gelu_new(tape: Tape, x: Tensor, kind: str) -> Tensor:
    """`0.5 * x * (1 + tanh(c * (x + a * x^3)))`, one kernel for each operation (`NewGELUActivation`).

    Under autocast the power, and with it what follows, is in fp32.
    """
    half = pw.scale(tape, x)
    base = pw.cast(tape, x, "fp32") if tape.autocast else x
    inner = pw.scale(tape, pw.add(tape, x, pw.scale(tape, power(tape, base))))
    return pw.multiply(tape, half, pw.shift(tape, pw.tanh(tape, inner)))


def _gelu_fast(tape: Tape, x: Tensor, kind: str) -> Tensor:
    """`0.5 * x * (1 + tanh(x * b * (1 + a * x * x)))`."""
    half = pw.scale(tape, x)
    outer = pw.scale(tape, x)
    square = pw.multiply(tape, pw.scale(tape, x), x)
    inner = pw.multiply(tape, outer, pw.shift(tape, square))
    return pw.multiply(tape, half, pw.shift(tape, pw.tanh(tape, inner)))


def _quick_gelu(tape: Tape, x: Tensor, kind: str) -> Tensor:
    """`x * sigmoid(1.702 * x)`."""
    return pw.multiply(tape, x, _of_output(tape, pw.scale(tape, x), "sigmoid"))


def _relu_squared(tape: Tape, x: Tensor, kind: str) -> Tensor:
    """`relu(x) ** 2`."""
    return power(tape, _of_output(tape, x, "relu"))


ACTIVATIONS: dict[str, Callable[[Tape, Tensor, str], Tensor]] = {
    "silu": _of_input,
    "swish": _of_input,
    "gelu": _of_input,
    "gelu_pytorch_tanh": _of_input,
    "mish": _of_input,
    "hardswish": _of_input,
    "relu": _of_output,
    "sigmoid": _of_output,
    "tanh": _of_output,
    "gelu_new": _gelu_new,
    "gelu_accurate": _gelu_new,
    "gelu_fast": _gelu_fast,
    "quick_gelu": _quick_gelu,
    "relu2": _relu_squared,
}
