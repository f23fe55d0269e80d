"""What `output_router_logits` makes of the routers' logits: the model's output keeps them, and most models add a loss of them.

Mirrors the hooks of transformers 5.23 utils/output_capturing.py, which keep what each router gives until the model's output goes,
and the `forward` of the causal models, which add `load_balancing_loss_func` to the loss. While a layer runs again for its
backward nothing is kept.
"""

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph.router_loss import balanced
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.config import ConfigReader

KEPT, LOSS = "kept", "loss"
BALANCED = ("eager", "shifted", "shifted_fp32", "liger")
"""Losses whose code, transformers' own or Liger's, adds the routers' (Liger-Kernel transformers/model/mixtral.py)."""


def asked(config: ConfigReader, makes: str = LOSS) -> str:
    """What the config asks for, for `ModelSpec.router_logits`. `makes`: what the architecture's code does where it asks."""
    return makes if config.boolean("output_router_logits", False) else ""


def record(model: Assembly, logits: Tensor) -> None:
    """A router gave these `(tokens, experts)`; the model's output keeps them where the config asks for it."""
    spec, tape = model.spec, model.tape
    if not spec.router_logits:
        return
    if spec.router_logits == LOSS and model.method.prefix_length and model.settings.padded:
        raise InputError(
            f"{spec.id}: output_router_logits with prefix_tuning and padding: the mask has the prefix, which the routers do not "
            "see, so transformers' loss of the routers stops with an error; set output_router_logits to false, or pack sequences"
        )
    if spec.router_logits == LOSS and not adds_loss(model):
        model.notes["router_loss"] = (
            "output_router_logits adds a loss that balances the experts, which is not part of these figures: it is counted for "
            f"supervised fine-tuning with the losses {', '.join(BALANCED)} alone"
        )
    tape.outputs.append(logits.storage)
    model.router_logits.append(logits)
    if traced(model) and adds_loss(model) and logits.requires_grad:
        tape.side.append((logits, logits.storage.nbytes, 1))


def adds_loss(model: Assembly) -> bool:
    """Whether the routers' loss is part of what is trained."""
    settings = model.settings
    return model.spec.router_logits == LOSS and settings.objective.plain and settings.loss in BALANCED


def traced(model: Assembly) -> bool:
    """Whether autograd sees what leaves a layer beside its hidden states: not where the layer runs without it first."""
    reversible = any(part.reversible() for part in model.method.parts)
    return model.settings.gradient_checkpointing != "reentrant" and not reversible


def with_router_loss(model: Assembly, loss: Tensor, hidden: Tensor) -> Tensor:
    """The loss, and that of the routers where it is added; the model's code holds the last hidden states until then."""
    if not adds_loss(model) or not model.routers:
        return loss
    seen = traced(model)
    routers = [
        Tensor(logits.storage, logits.shape, logits.dtype, logits.requires_grad and seen)
        for logits, count in model.routers
        for _ in range(count)
    ]
    total = balanced(model.tape, loss, routers, getattr(model.spec, "top_k", 1), model.settings.padded)
    model.tape.hold(hidden)
    return total
