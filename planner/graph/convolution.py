"""Causal convolutions over a sequence, one filter for each channel, as state-space and linear-attention layers have them.

Mirrors `causal_conv1d_fn` of transformers 5.23 models/qwen3_5/modeling_qwen3_5.py and mamba2/modeling_mamba2.py, where neither
the package causal-conv1d nor a kernel of the hub is there. Not counted: copies and workspaces inside cuDNN.
"""

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import lowered
from tuneplan.planner.graph.tape import Gradient, Tape
from tuneplan.planner.graph.tensor import Size, Tensor, elements, round_block


def causal_conv(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None, length: Size) -> Tensor:
    """The convolution of `nn.Conv1d` padded on both sides, cut to `length`: a view of the padded result.

    Shapes: x `(batch, channels, length)`, weight `(channels, 1, width)`, bias `(channels,)` -> as x.
    """
    if tape.autocast:
        x, weight = pw.cast(tape, x, tape.autocast), lowered(tape, weight)
        bias = None if bias is None else lowered(tape, bias)
    batch, channels, _ = x.shape
    width = weight.shape[-1]
    trained = bias is not None and bias.requires_grad
    needs = x.requires_grad or weight.requires_grad or trained
    out = tape.fresh((batch, channels, length + width - 1), x.dtype, needs)
    flops: Size = 2 * elements(out.shape) * width
    gradients = [Gradient(x, round_block(x.nbytes), flops=flops), Gradient(weight, round_block(weight.nbytes), flops=flops)]
    read: tuple[Tensor, ...] = (x, weight)
    if bias is not None:
        gradients.append(Gradient(bias, round_block(bias.nbytes)))
        read = (x, weight, bias)
    tape.record("convolution", read, out, saved=(x, weight), gradients=tuple(gradients), flops=flops)
    return pw.narrow(tape, out, x.shape)
