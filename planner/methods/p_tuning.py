"""P-tuning: the embeddings before each sequence come out of a small trained network."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph.matmul import embedding, linear
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Tensor, round_block
from tuneplan.planner.methods.part import Part
from tuneplan.planner.methods.prompt_tuning import check_tokens, prepend
from tuneplan.planner.models.tasks import SEQ2SEQ

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly
    from tuneplan.planner.models.spec import ModelSpec
    from tuneplan.planner.training.settings import Settings


@dataclass(frozen=True, slots=True)
class PTuning(Part):
    """The input of the first layer is [MLP(P); E(x)] with P and the MLP trained; what is saved is MLP(P).

    Attributes:
        num_virtual_tokens: rows of P; the sequence grows by so many.
        encoder_hidden_size: width of the MLP; 0 for the model's.
    """

    label: ClassVar[str] = "p_tuning"
    family: ClassVar[str] = "additive"
    paper: ClassVar[str] = "Liu et al. 2021, GPT Understands, Too"
    source: ClassVar[str] = "section 3.2; peft 0.21 tuners/p_tuning/model.py PromptEncoder"
    not_modelled: ClassVar[str] = "the LSTM encoder"
    mergeable: ClassVar[bool] = False
    batchable: ClassVar[bool] = True

    num_virtual_tokens: int = 20
    encoder_hidden_size: int = 0

    def check(self) -> None:
        """Raise InputError for a width that makes no sense."""
        if self.encoder_hidden_size < 0:
            raise InputError(f"p_tuning: encoder_hidden_size={self.encoder_hidden_size} is not a width; use 0 for the model's")

    def check_spec(self, spec: "ModelSpec", settings: "Settings") -> None:
        """Raise InputError for virtual tokens beyond the context."""
        check_tokens(self.label, self.num_virtual_tokens, spec, settings)

    def at_inference(self) -> Part | None:
        """Nothing: the prompt's keys and values are in the cache."""
        return None

    def cached_tokens(self) -> int:
        """The prompt."""
        return self.num_virtual_tokens

    def virtual_tokens(self) -> int:
        """The prompt."""
        return self.num_virtual_tokens

    def peft_config(self) -> dict[str, Any]:
        """`PromptEncoderConfig` of peft 0.21."""
        width = {"encoder_hidden_size": self.encoder_hidden_size} if self.encoder_hidden_size else {}
        return {"peft_type": "P_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": self.num_virtual_tokens, **width}

    def embedded(self, model: "Assembly", hidden: Tensor) -> Tensor:
        """Run the prompt through the network, once for all sequences."""
        tape, width = model.tape, hidden.shape[-1]
        count = self.num_virtual_tokens * (2 if model.spec.task == SEQ2SEQ else 1)
        inner = self.encoder_hidden_size or width
        table = model.common("prompt_encoder.embedding.weight", (count, width), "fp32", saved=False)
        x = embedding(tape, (1, count), table)
        for index, shape in ((0, (inner, width)), (2, (inner, inner)), (4, (width, inner))):
            name = f"prompt_encoder.mlp_head.{index}"
            weight = model.common(f"{name}.weight", shape, "fp32", saved=False)
            x = linear(tape, x, weight, model.common(f"{name}.bias", shape[:1], "fp32", saved=False))
            if index < 4:
                active = tape.fresh(x.shape, "fp32", True)
                x = tape.record("relu", (x,), active, saved=(active,), gradients=(Gradient(x, round_block(x.nbytes)),))
        model.extra_saved_bytes += 4 * count * width
        return prepend(model, x, hidden, self.num_virtual_tokens)
