"""Heads of models that classify, and the end of a model that brings its own loss.

Mirrors transformers 5.23; a family's own file names the modelling file.
"""

from tuneplan.planner.graph import loss as losses
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.methods.targeted import Targeted
from tuneplan.planner.models import tasks
from tuneplan.planner.models.assembly import Assembly


def first_token(model: Assembly, hidden: Tensor) -> Tensor:
    """`hidden[:, 0]`: `(batch, width)`, a view."""
    return pw.narrow(model.tape, hidden, (hidden.shape[0], hidden.shape[-1]))


def head(model: Assembly, x: Tensor, name: str, outputs: int, bias: bool = True) -> Tensor:
    """A linear layer of the classifier, which every method trains."""
    return model.linear(x, name, outputs, bias, kind="classifier")


def classified(
    model: Assembly, entry: Tensor, logits: Tensor, held: tuple[Tensor, ...] = (), last: Tensor | None = None
) -> Block:
    """The loss of a classification and the end of the model.

    `held`: what the model's code holds to the end; `last`: the hidden states among it, where a norm made them of `entry`.
    """
    tape = model.tape
    for part in model.method.parts if model.spec.task != tasks.SEQ_CLS else ():
        if isinstance(part, Targeted) and model.spec.task == tasks.IMAGE_CLS:
            model.notes["assumed"] = (
                f"peft knows no task of images: give {part.label} exclude_modules=classifier and modules_to_save=classifier too, "
                "which the estimate assumes, or the new head is not trained."
            )
        elif isinstance(part, Targeted) and part.targets("classifier"):
            model.notes["assumed"] = (
                f"peft refuses {part.label} with target_modules={','.join(part.target_modules)} for token classification, as "
                "it trains a copy of the classifier as well; the estimate is with exclude_modules=classifier."
            )
    loss = losses.classification(tape, logits)
    tape.outputs.append(logits.storage)
    tape.hold(entry if last is None else last, *held)
    return ended(model, entry, loss)


def ended(model: Assembly, entry: Tensor, loss: Tensor) -> Block:
    """The last block, given the model's own loss."""
    for part in model.method.parts:
        loss = part.loss(model, loss)
        part.finish(model)
    return close("head", model.tape, entry, None, entry_held=False)
