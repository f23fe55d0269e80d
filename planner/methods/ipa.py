"""Inference-time policy adapters: a small language model beside the frozen one; their next-token distributions are multiplied."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph.matmul import embedding, linear
from tuneplan.planner.graph.pointwise import rms_norm
from tuneplan.planner.graph.tensor import LOGITS, Tensor
from tuneplan.planner.methods.side_network import NarrowCopy

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly
    from tuneplan.planner.models.spec import ModelSpec
    from tuneplan.planner.training.settings import Settings

LOSSES = ("eager", "shifted", "shifted_fp32")


@dataclass(frozen=True, slots=True)
class Ipa(NarrowCopy):
    """p(token) proportional to p_base(token) p_adapter(token): logits are added. The adapter is a narrow copy of the model."""

    label: ClassVar[str] = "ipa"
    family: ClassVar[str] = "additive"
    paper: ClassVar[str] = "Lu et al. 2023, Inference-Time Policy Adapters (IPA): Tailoring Extreme-Scale LMs without Fine-tuning"
    source: ClassVar[str] = "section 2.1, equation 1"
    not_modelled: ClassVar[str] = (
        "the reinforcement learning around it (sampling, the reward model, the KL term's reference): one supervised step on the "
        "combined distribution; an approximate policy in place of the base; the adapter's own tokenizer"
    )
    code_changes: ClassVar[str] = "a second language model, and logits that are added before sampling"

    def check_spec(self, spec: "ModelSpec", settings: "Settings") -> None:
        """Raise InputError as for a narrow copy, and for a loss that never has whole logits."""
        NarrowCopy.check_spec(self, spec, settings)
        if settings.loss not in LOSSES:
            raise InputError(f"ipa adds whole logits, and loss {settings.loss} never has them; use --loss eager")

    def allows(self, settings: "Settings") -> bool:
        """Only without gradient checkpointing, and with whole logits."""
        return NarrowCopy.allows(self, settings) and settings.loss in LOSSES

    def first(self, model: "Assembly", hidden: Tensor) -> Tensor:
        """The adapter's own embedding of the tokens."""
        shape = (model.spec.vocab_size, self.narrow(model.spec).hidden_size)
        table = model.common("side.embed_tokens.weight", shape, hidden.dtype)
        return embedding(model.tape, (hidden.shape[0], hidden.shape[1]), table)

    def step(self, model: "Assembly", hidden: Tensor, state: Tensor) -> Tensor:
        """A layer of the adapter; what the model's layer gave is not read."""
        model.tape.scope = "side"
        return self.run_layer(model, state)

    def stack_exit(self, model: "Assembly", hidden: Tensor) -> Tensor:
        """The model's own hidden states go to its head; the adapter has one of its own."""
        return hidden

    def added_logits(self, model: "Assembly") -> Tensor:
        """The adapter's last layer, norm and head."""
        assert model.beside is not None
        tape, before = model.tape, model.tape.category
        state = self.run_layer(model, model.beside)
        dtype, width = state.dtype, int(state.shape[-1])
        state = rms_norm(tape, state, model.common("side.norm.weight", (width,), dtype))
        tape.category = LOGITS
        logits = linear(tape, state, model.common("side.lm_head.weight", (model.spec.vocab_size, width), dtype))
        tape.category = before
        tape.hold(state)
        return logits
