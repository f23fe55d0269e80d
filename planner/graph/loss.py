"""From hidden states to the loss: the head's logits and the ways of computing cross-entropy.

N tokens, V vocabulary, H hidden size. Logits and their gradients are in the category "logits".
"""

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import linear
from tuneplan.planner.graph.tape import Gradient, Tape
from tuneplan.planner.graph.tensor import LOGITS, Size, Tensor, elements, round_block, tensor_bytes
from tuneplan.planner.graph.trl_loss import trl

CHUNKS = 8


def eager(tape: Tape, hidden: Tensor, weight: Tensor, bias: Tensor | None, rescale: str = "") -> Tensor:
    """Full logits, a fp32 copy, log-softmax and negative log-likelihood.

    Mirrors `LlamaForCausalLM.forward` and `ForCausalLMLoss` of transformers 5.23: the model's output holds the logits until
    the loss is returned; log-softmax is what stays for the backward. `rescale`: see `rescaled`.
    """
    tape.category = LOGITS
    logits = linear(tape, hidden, weight, bias)
    logits = rescaled(tape, logits, rescale)
    labels = tape.fresh(hidden.shape[:-1], "int64", False)
    tape.record("shift_labels", (), labels, scratch=tensor_bytes(hidden.shape[:-1], "int64"))
    wide = pw.cast(tape, logits, "fp32")
    loss = _cross_entropy(tape, wide, labels)
    tape.outputs.append(logits.storage)
    tape.hold(wide, hidden)
    return loss


def rescaled(tape: Tape, logits: Tensor, how: str) -> Tensor:
    """Logits as the loss takes them: as they are (""), multiplied (Granite, Cohere: "scale") or capped (Gemma 2: "softcap").

    Or in fp32, which replaces them in the model's output (Nemotron-H: "float"). Those of another model (`tape.logits`) are added.
    """
    if how == "scale":
        logits = pw.scale(tape, logits, "logits_scaling")
    logits = pw.cast(tape, logits, "fp32") if how == "float" else logits
    logits = pw.softcap(tape, logits) if how == "softcap" else logits
    return logits if tape.logits is None else pw.add(tape, logits, tape.logits)


def _cross_entropy(tape: Tape, wide: Tensor, labels: Tensor) -> Tensor:
    full = round_block(wide.nbytes)
    logs = tape.fresh(wide.shape, "fp32", wide.requires_grad)
    tape.record("log_softmax", (wide,), logs, saved=(logs,), gradients=(Gradient(wide, full, moved=3 * wide.nbytes),))
    loss = tape.fresh((1,), "fp32", wide.requires_grad)
    gradient = Gradient(logs, full, moved=wide.nbytes)
    return tape.record("nll_loss", (logs, labels), loss, saved=(logs, labels), gradients=(gradient,), moved=0)


def classification(tape: Tape, logits: Tensor) -> Tensor:
    """`CrossEntropyLoss` of a classification, in the logits' dtype; shape `(..., labels)`."""
    full = round_block(logits.nbytes)
    logs = tape.fresh(logits.shape, logits.dtype, logits.requires_grad)
    gradient = Gradient(logits, full, moved=3 * logits.nbytes)
    tape.record("log_softmax", (logits,), logs, saved=(logs,), gradients=(gradient,))
    loss = tape.fresh((1,), logits.dtype, logits.requires_grad)
    return tape.record("nll_loss", (logs,), loss, saved=(logs,), gradients=(Gradient(logs, full, moved=logs.nbytes),), moved=0)


def narrow(tape: Tape, hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`CrossEntropyLoss` of an encoder-decoder: log-softmax of the logits as they come, in the model's dtype.

    `bias`: a constant `(1, vocabulary)` that is added to the logits (BART's `final_logits_bias`).
    """
    tape.category = LOGITS
    logits = linear(tape, hidden, weight, None)
    if bias is not None:
        logits = pw.add(tape, logits, bias)
    loss = classification(tape, logits)
    tape.outputs.append(logits.storage)
    tape.hold(logits)
    return loss


def chunked(tape: Tape, hidden: Tensor, weight: Tensor, bias: Tensor | None, rescale: str = "") -> Tensor:
    """The head and the loss on an eighth of the tokens at a time; only one chunk's fp32 logits exist at once.

    As torchtune's `LinearCrossEntropyLoss` with `num_output_chunks=8`: log-softmax of every chunk stays for the backward, the
    head's gradients come chunk by chunk.
    """
    tape.category = LOGITS
    batch, length = hidden.shape[:-1]
    part: Size = -(-length // CHUNKS)
    total: Tensor | None = None
    logits: Tensor | None = None
    for index in range(CHUNKS):
        size = part if index < CHUNKS - 1 else length - (CHUNKS - 1) * part
        piece = pw.copy(tape, pw.narrow(tape, hidden, (batch, size, hidden.shape[-1])), "select")
        previous, logits = logits, linear(tape, piece, weight, bias)
        logits = rescaled(tape, logits, rescale)
        if previous is not None:
            tape.hold(previous)
        labels = tape.fresh((batch, size), "int64", False)
        tape.record("labels", (), labels)
        loss = _cross_entropy(tape, pw.cast(tape, logits, "fp32"), labels)
        total = loss if total is None else pw.add(tape, total, loss)
    assert total is not None
    assert logits is not None
    tape.hold(hidden, logits)
    return total


def liger(tape: Tape, hidden: Tensor, weight: Tensor, bias: Tensor | None, rescale: str = "") -> Tensor:
    """Liger's fused linear cross-entropy: the gradients of hidden states and head are made in the forward, chunk by chunk.

    Mirrors `fused_linear_cross_entropy_forward` of Liger-Kernel 0.8.5 on Ampere and later: one buffer of logits, which become
    their gradients in place, next_power_of_2(ceil(N / ceil(V / H))) tokens long. `rescale` is folded into the kernel.
    """
    tape.category = LOGITS
    vocabulary, width = weight.shape
    tokens = elements(hidden.shape[:-1])
    chunk = _next_power_of_two(-(-tokens // -(-vocabulary // width)))
    chunk = chunk + (tokens < chunk) * (tokens - chunk)
    flops: Size = 2 * tokens * vocabulary * width
    grad_hidden = tape.fresh(hidden.shape, hidden.dtype, False)
    tape.record("grad_hidden", (hidden,), grad_hidden, moved=hidden.nbytes)
    kept: tuple[Tensor, ...] = (grad_hidden,)
    gradients: tuple[Gradient, ...] = (Gradient(hidden, None, given=grad_hidden.storage),)
    products = 2
    if weight.requires_grad:
        grad_weight = tape.fresh(weight.shape, weight.dtype, False)
        tape.record("grad_weight", (), grad_weight, moved=weight.nbytes)
        kept = (grad_hidden, grad_weight)
        gradients = (*gradients, Gradient(weight, None, given=grad_weight.storage))
        products = 3
    losses = tape.fresh(hidden.shape[:-1], "fp32", False)
    tape.record("loss_per_token", (), losses)
    logits = tape.fresh((chunk, vocabulary), hidden.dtype, False)
    # the products are those of the logits' dtype, so the clock must not see them at the fp32 loss
    tape.record("logits", (), logits, flops=products * flops, moved=products * (hidden.nbytes + weight.nbytes))
    loss = tape.fresh((1,), "fp32", hidden.requires_grad or weight.requires_grad)
    return tape.record(
        "fused_linear_cross_entropy",
        (hidden, weight, losses, logits, *kept),
        loss,
        saved=kept,
        gradients=gradients,
        moved=2 * tokens * vocabulary * 2,
    )


def _next_power_of_two(value: Size) -> Size:
    """The smallest power of two that is not below `value`; works on ints and numpy arrays."""
    power: Size = value * 0 + 1
    for _ in range(40):
        power = power * (1 + (power < value))
    return power


def shifted(
    tape: Tape, hidden: Tensor, weight: Tensor, bias: Tensor | None, rescale: str = "", fp32_outputs: bool = False
) -> Tensor:
    """The loss of older transformers: the fp32 logits are copied once more, without the last token, before cross-entropy.

    Mirrors `ForCausalLMLoss` of transformers 4.48 loss/loss_utils.py; newer versions shift the labels instead.

    `fp32_outputs`: the model's code itself casts the logits, so that its output holds those in fp32 and the others are gone.
    """
    tape.category = LOGITS
    logits = linear(tape, hidden, weight, bias)
    logits = rescaled(tape, logits, rescale)
    wide = pw.cast(tape, logits, "fp32")
    batch, length, vocabulary = wide.shape
    short = pw.copy(tape, pw.narrow(tape, wide, (batch, length - 1, vocabulary)), "shift_logits")
    labels = tape.fresh((batch, length - 1), "int64", False)
    tape.record("shift_labels", (), labels)
    loss = _cross_entropy(tape, short, labels)
    tape.outputs.append(wide.storage if fp32_outputs else logits.storage)
    tape.hold(wide, short, hidden)
    return loss


def shifted_fp32(tape: Tape, hidden: Tensor, weight: Tensor, bias: Tensor | None, rescale: str = "") -> Tensor:
    """As `shifted`, with the loss written out in the model's code, as in transformers 4.45 and before."""
    return shifted(tape, hidden, weight, bias, rescale, fp32_outputs=True)


LOSSES = {"eager": eager, "shifted": shifted, "shifted_fp32": shifted_fp32, "liger": liger, "chunked": chunked, "trl": trl}
