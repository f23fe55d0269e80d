"""Prompt tuning: trained embeddings stand before each sequence."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import embedding
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Tensor, round_block
from tuneplan.planner.methods.part import Part
from tuneplan.planner.models.spec import CAUSAL_LM
from tuneplan.planner.models.tasks import SEQ2SEQ

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly
    from tuneplan.planner.models.spec import ModelSpec
    from tuneplan.planner.training.settings import Settings


def check_tokens(label: str, count: int, spec: "ModelSpec", settings: "Settings") -> None:
    """Raise InputError for virtual tokens that do not fit the model's context with the sequence."""
    if count < 1:
        raise InputError(f"{label}: num_virtual_tokens={count} is not a prompt; use 1 or more")
    seq2seq = spec.task == SEQ2SEQ and label == "prefix_tuning"  # whose decoder has them
    length: Any = settings.target_length if seq2seq else settings.seq_len
    longest = int(length if isinstance(length, int) else length.max())
    if longest + count > spec.max_position_embeddings:
        raise InputError(
            f"{label}: {count} virtual tokens and {longest} tokens of a sequence are more than the "
            f"{spec.max_position_embeddings} positions of {spec.id}; lower num_virtual_tokens or seq-len"
        )


def prepend(model: "Assembly", prompts: Tensor, hidden: Tensor, rows: int = 0) -> Tensor:
    """The prompts before the tokens' embeddings, once a sequence; shapes `(1, n, hidden)` and `(batch, length, hidden)`.

    `rows`: of them, where not all go there (an encoder-decoder's, of which peft makes as many for its decoder and leaves them).
    """
    tape = model.tape
    batch, length, width = hidden.shape
    repeated = tape.fresh((batch, *prompts.shape[1:]), prompts.dtype, prompts.requires_grad)
    tape.record("repeat", (prompts,), repeated, gradients=(Gradient(prompts, round_block(prompts.nbytes)),))
    narrow = whole = pw.cast(tape, repeated, hidden.dtype)
    if rows and rows != prompts.shape[1]:
        narrow = pw.narrow(tape, whole, (batch, rows, width))
    out = tape.fresh((batch, length + narrow.shape[1], width), hidden.dtype, narrow.requires_grad or hidden.requires_grad)
    joined = tape.record("prompt", (narrow, hidden), out, gradients=(Gradient(narrow, None), Gradient(hidden, None)))
    tape.outputs.append(whole.storage)
    if model.spec.task == CAUSAL_LM:
        labels = tape.fresh(out.shape[:2], "int64", False)
        tape.record("labels", (), labels)
        tape.outputs.append(labels.storage)
    return joined


@dataclass(frozen=True, slots=True)
class PromptTuning(Part):
    """The input of the first layer is [P; E(x)] with P trained.

    Attributes:
        num_virtual_tokens: rows of P; the sequence grows by so many.
    """

    label: ClassVar[str] = "prompt_tuning"
    family: ClassVar[str] = "additive"
    paper: ClassVar[str] = "Lester et al. 2021, The Power of Scale for Parameter-Efficient Prompt Tuning"
    source: ClassVar[str] = "section 2; peft 0.21 peft_model.py PeftModelForCausalLM.forward, tuners/prompt_tuning/model.py"
    mergeable: ClassVar[bool] = False
    batchable: ClassVar[bool] = True

    num_virtual_tokens: int = 20

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
        """`PromptTuningConfig` of peft 0.21."""
        return {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": self.num_virtual_tokens}

    def embedded(self, model: "Assembly", hidden: Tensor) -> Tensor:
        """Put the prompt before the embeddings."""
        rows = self.num_virtual_tokens * (2 if model.spec.task == SEQ2SEQ else 1)
        table = model.common("prompt_encoder.embedding.weight", (rows, hidden.shape[-1]), "fp32")
        return prepend(model, embedding(model.tape, (1, rows), table), hidden, self.num_virtual_tokens)
