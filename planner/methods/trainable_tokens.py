"""Trainable tokens: a few rows of the embedding are trained."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Tensor, round_block
from tuneplan.planner.methods.part import Part

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly
    from tuneplan.planner.models.spec import ModelSpec
    from tuneplan.planner.training.settings import Settings


@dataclass(frozen=True, slots=True)
class TrainableTokens(Part):
    """E with the rows of some tokens replaced by trained ones; every forward copies all of E.

    Attributes:
        token_indices: of the vocabulary.
    """

    label: ClassVar[str] = "trainable_tokens"
    family: ClassVar[str] = "selective"
    paper: ClassVar[str] = "none: a tuner of PEFT"
    source: ClassVar[str] = "peft 0.21 tuners/trainable_tokens/layer.py"

    token_indices: tuple[int, ...] = (0,)

    def check_spec(self, spec: "ModelSpec", settings: "Settings") -> None:
        """Raise InputError for tokens that the vocabulary does not have."""
        for index in self.token_indices:
            if not 0 <= index < spec.vocab_size:
                raise InputError(f"trainable_tokens: token {index} is not in the vocabulary of {spec.id} ({spec.vocab_size})")

    def peft_config(self) -> dict[str, Any]:
        """`TrainableTokensConfig` of peft 0.21."""
        return {"peft_type": "TRAINABLE_TOKENS", "task_type": "CAUSAL_LM", "token_indices": list(self.token_indices)}

    def embedding_weight(self, model: "Assembly", weight: Tensor) -> Tensor:
        """A copy of the whole embedding with the trained rows in it."""
        tape = model.tape
        shape = (len(self.token_indices), weight.shape[1])
        rows = model.common("model.embed_tokens.trainable_tokens_delta", shape, "fp32")
        narrow = pw.cast(tape, rows, weight.dtype)
        merged = tape.fresh(weight.shape, weight.dtype, True)
        return tape.record("index_copy", (narrow,), merged, gradients=(Gradient(narrow, round_block(narrow.nbytes)),))
