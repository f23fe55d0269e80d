"""What follows the last hidden states: the language model's head and its loss, or the head and the loss of another objective."""

from tuneplan.planner.graph import loss as losses
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import linear
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import LOGITS, Tensor, round_block
from tuneplan.planner.graph.trl_loss import label_log_probs
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.training.objective import PROMPT, REFERENCE

SCORE = "score"
"""Module of the head that AutoModelForSequenceClassification adds."""


def objective_loss(model: Assembly, hidden: Tensor, head: Tensor, bias: Tensor | None, rescale: str) -> Tensor:
    """The loss that the backward starts from.

    Args:
        model: where ops are recorded.
        hidden: the last hidden states, normed.
        head: weight of the language model's head.
        bias: of the head, if it has one.
        rescale: what is done with the logits; see `loss.rescaled`.
    """
    settings, tape = model.settings, model.tape
    objective = settings.objective
    if objective.plain:
        return losses.LOSSES[settings.loss](tape, hidden, head, bias, rescale)
    batch = hidden.shape[0]
    if objective.name == PROMPT:
        return _next_token(model, hidden, head, bias)
    completion = objective.scored(hidden.shape[1])
    log_probs = label_log_probs(
        tape,
        hidden,
        head,
        entropy=objective.name != REFERENCE,
        correct=objective.name == "dpo",
        mean=objective.name == "dpo",
        completion=completion,
    )
    tape.hold(hidden)
    if objective.name == REFERENCE:
        return log_probs
    if objective.name == "dpo":
        sums = tape.fresh((batch,), "fp32", log_probs.requires_grad)
        tape.record("sum", (log_probs,), sums, gradients=(Gradient(log_probs, None),))
        return _scalar(model, sums, "logsigmoid")
    ratio = pw.shift(tape, log_probs)
    importance = pw.tanh(tape, ratio)  # exp saves its result, as tanh does
    clipped = pw.activation(tape, importance, "clamp")
    advantage = pw.scale(tape, importance, "advantages")
    return _scalar(model, pw.add(tape, advantage, pw.scale(tape, clipped, "advantages"), "minimum"), "masked_mean")


def _next_token(model: Assembly, hidden: Tensor, head: Tensor, bias: Tensor | None) -> Tensor:
    """The logits after a prompt, in fp32 too, as `generate` of transformers 5.23 takes them for sampling."""
    tape = model.tape
    tape.category = LOGITS
    last = pw.narrow(tape, hidden, (hidden.shape[0], 1, hidden.shape[-1]))
    logits = linear(tape, last, head, bias)
    wide = pw.cast(tape, logits, "fp32")
    chances = pw.activation(tape, wide, "softmax")
    tape.hold(logits, wide, hidden)
    return chances


def reward_loss(model: Assembly, hidden: Tensor) -> Tensor:
    """The score of each sequence, from one linear output a token, and the loss over pairs.

    Mirrors `GenericForSequenceClassification.forward` of transformers 5.23 and `compute_loss` of TRL's RewardTrainer. PEFT trains
    a copy of the new head (its `modules_to_save` for SEQ_CLS) beside the frozen original.
    """
    tape = model.tape
    tape.category = LOGITS
    tape.scope = SCORE
    width = int(hidden.shape[-1])
    if all(part.freezes_base() for part in model.method.parts):
        model.common(f"{SCORE}.original", (1, width), model.settings.dtype, trained=False, saved=False)
        weight = model.common(f"{SCORE}.weight", (1, width), model.settings.dtype)
    else:
        weight = model.weight(SCORE, (1, width), "head")
    scores = linear(tape, hidden, weight)
    tape.hold(hidden)
    tape.outputs.append(scores.storage)
    return _scalar(model, pw.cast(tape, scores, "fp32"), "logsigmoid")


def _scalar(model: Assembly, x: Tensor, kind: str) -> Tensor:
    loss = model.tape.fresh((1,), "fp32", x.requires_grad)
    gradient = Gradient(x, round_block(x.nbytes))
    return model.tape.record(kind, (x,), loss, saved=(x,), gradients=(gradient,))
