"""TRL's fused head: log-probabilities of the labels from the hidden states, without logits of the whole batch.

Mirrors `add_fused_lm_head` (trainer/utils.py) and `ChunkedLogProbFunction` (kernels/chunked_logprob.py) of TRL 1.16 on a GPU,
where Triton folds each tile of logits into running statistics. N tokens that are scored, V vocabulary, H hidden size.
"""

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.tape import Gradient, Tape
from tuneplan.planner.graph.tensor import LOGITS, Size, Tensor, elements, round_block, tensor_bytes

TOKENS = 4096
"""Rows of a tile (`TOKEN_CHUNK_SIZE`)."""
COLUMNS = 32768
"""Columns of a tile (`_CHUNKED_LOGPROB_CHUNK_SIZE`); the buffer has them all, also where the vocabulary is smaller."""
STATISTICS = 7
"""fp32 values a token that the forward folds tiles into: maximum, four sums, the best before the label, the label's logit."""


def trl(tape: Tape, hidden: Tensor, weight: Tensor, bias: Tensor | None, rescale: str = "") -> Tensor:
    """The loss of TRL's SFTTrainer. `rescale` is folded into the kernel."""
    log_probs = label_log_probs(tape, hidden, weight, entropy=True, correct=True)
    tape.hold(hidden)
    negative = pw.scale(tape, log_probs, "neg")
    loss = tape.fresh((1,), "fp32", negative.requires_grad)
    tape.record("sum", (negative,), loss, gradients=(Gradient(negative, None),))
    tape.hold(log_probs)
    return loss


def label_log_probs(
    tape: Tape,
    hidden: Tensor,
    weight: Tensor,
    *,
    entropy: bool,
    correct: bool = False,
    mean: bool = False,
    completion: Size = 0,
) -> Tensor:
    """Log-probability of each next token. Shapes: hidden `(batch, length, H)`, weight `(V, H)`, result `(batch, length - 1)`.

    The rows that count are copied; the backward makes each tile again and sums the gradients of hidden states and
    head in fp32. Not counted: the indices of rows that count (16 bytes a token), which live inside an operator.

    Args:
        tape: where ops are recorded.
        hidden: the last hidden states, normed.
        weight: of the head.
        entropy: whether the entropy of each distribution is kept too.
        correct: whether it is noted if the label is the likeliest token.
        mean: whether the mean of the logits is kept too.
        completion: tokens at the end of each sequence that count; 0 for all.
    """
    tape.category = LOGITS
    batch, length, width = hidden.shape
    vocabulary = weight.shape[0]
    scored = (batch, length - 1)
    counted = completion + (completion == 0) * (length - 1)
    tokens: Size = batch * counted
    needs = hidden.requires_grad or weight.requires_grad
    mask = tape.fresh(scored, "bool", False)
    tape.record("label_mask", (), mask)
    short = pw.narrow(tape, hidden, (batch, length - 1, width))
    rows = tape.fresh((batch, counted, width), hidden.dtype, hidden.requires_grad)
    gradient = Gradient(short, round_block(short.nbytes), moved=2 * short.nbytes)
    tape.record("rows", (short, mask), rows, saved=(mask,), gradients=(gradient,))
    targets = tape.fresh((batch, counted), "int64", False)
    tape.record("targets", (), targets)
    dtype = tape.autocast or hidden.dtype
    tile = _tile_bytes(tokens, width, vocabulary, dtype, hidden.dtype, weight.dtype)
    vector = round_block(4 * tokens)
    normalizer = tape.fresh((batch, counted), "fp32", False)
    flops: Size = 2 * tokens * vocabulary * width
    moved = rows.nbytes + weight.nbytes + 2 * tokens * vocabulary * (4 if dtype == "fp32" else 2)
    tape.record("tiles", (rows, weight), normalizer, scratch=tile + STATISTICS * vector, flops=flops, moved=moved)
    kept = [rows, targets, normalizer]
    if entropy:
        own = tape.fresh((batch, counted), "fp32", False)
        tape.record("entropy", (normalizer,), own)
        kept.append(own)
    if mean:
        tape.record("mean_logits", (), tape.fresh((batch, counted), "fp32", False))
    if correct:
        tape.record("is_top1", (), tape.fresh((batch, counted), "bool", False))
    log_probs = tape.fresh((batch, counted), "fp32", needs)
    sums = round_block(4 * elements(rows.shape)) * (rows.dtype != "fp32" and rows.requires_grad)
    if weight.requires_grad and weight.dtype != "fp32":
        sums = sums + round_block(4 * elements(weight.shape))
    gradients = (
        Gradient(rows, round_block(rows.nbytes), flops=2 * flops, moved=2 * moved),
        Gradient(weight, round_block(weight.nbytes), flops=flops, moved=moved),
    )
    result = tape.record(
        "chunked_logprob", (*kept, weight), log_probs, saved=tuple(kept), gradients=gradients, workspace=tile + sums
    )
    out = tape.fresh(scored, "fp32", needs)
    tape.record(
        "masked_scatter",
        (result, mask),
        out,
        saved=(mask,),
        gradients=(Gradient(result, vector),),
        scratch=round_block(out.nbytes),
    )
    return out


def _tile_bytes(tokens: Size, width: int, vocabulary: int, dtype: str, hidden: str, weight: str) -> Size:
    """A tile of logits, and the copies of its rows and columns where autocast casts them."""
    rows: Size = TOKENS + (tokens < TOKENS) * (tokens - TOKENS)
    columns = min(vocabulary, COLUMNS)
    size = tensor_bytes((rows, COLUMNS), dtype)
    if hidden != dtype:
        size = size + tensor_bytes((rows, width), dtype)
    if weight != dtype:
        size = size + tensor_bytes((columns, width), dtype)
    return size
