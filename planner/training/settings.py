"""How a step is trained: everything about a run that is neither the model, the method nor the hardware."""

from dataclasses import dataclass

from tuneplan.planner.graph.tensor import Size, elements
from tuneplan.planner.training.objective import SFT, Objective

DTYPES = ("bf16", "fp16", "fp32")
PRECISIONS = ("pure", "master-weights", "autocast")
ATTENTIONS = ("eager", "sdpa", "flash")
LOOP = "eager"
"""transformers' `experts_implementation` that runs experts one by one."""
EXPERTS = ("grouped_mm", "batched_mm", LOOP)
ROUTINGS = ("even", "worst")
BITSANDBYTES = "bitsandbytes"
OURS = "tuneplan"
KERNELS = (BITSANDBYTES, OURS)
CHECKPOINTING = ("off", "non-reentrant", "reentrant")


@dataclass(frozen=True, slots=True)
class Settings:
    """One training step as PyTorch runs it.

    Attributes:
        micro_batch_size: sequences of one forward and backward.
        seq_len: tokens of each sequence.
        dtype: of the model's weights and activations.
        precision: "pure" (weights, gradients and states in `dtype`) or "master-weights" (16-bit weights and gradients, fp32
            master copies and states in the optimizer), or "autocast" (the step runs under CUDA autocast, as with
            `TrainingArguments(bf16=True)`: weights stay in `dtype`, matrix products run in 16 bits).
        attention: the implementation asked of transformers.
        loss: eager, liger or chunked.
        gradient_checkpointing: "off", "non-reentrant" (transformers' default) or "reentrant".
        optimizer: a name of the optimizer registry.
        accumulating: gradients exist when the forward starts (all micro-batches of a step but the first); for FSDP, an array too.
        max_grad_norm: gradients are clipped to this norm; 0 is no clipping.
        attention_dropout: overrides the model's own when not None.
        compute_capability: of the card, as (major, minor), where sdpa's choice of kernel depends on it.
        padded: sequences are padded, so attention gets a mask.
        keep_outputs: the training loop keeps the model's output (logits, cache) until the next forward is over, as a loop does
            that is written `outputs = model(...)`; transformers' Trainer does not.
        target_len: tokens of each target of an encoder-decoder; None for as many as the sequence.
        images: in each sequence, for a model that reads both; 0 for text alone.
        image_size: height and width of each [pixels], for a model that reads any; None for the spec's.
        use_cache: the model keeps keys and values in a cache, as it does by default; the Trainer turns it off, and so does
            gradient checkpointing.
        objective: what is trained towards; supervised fine-tuning unless said otherwise. A micro-batch of pairs has two sequences
            for each.
        experts: transformers' `experts_implementation` of a mixture of experts; "grouped_mm" unless it is told otherwise, "eager"
            for a loop over the experts that have tokens.
        routing: how its tokens are spread over experts: "even", or "worst", where all tokens want the same experts or, where
            ranks split them, those of one rank. On one rank it decides something for the loop ("eager") alone: the others compute
            all rows at once, whichever experts they choose.
        kernels: that dequantize 4-bit weights: "bitsandbytes", or "tuneplan" for a model patched with `tuneplan.kernels.patch`.
        gathered_cast: fp32 adapters are cast to `dtype` as they are gathered, so that the model computes in one dtype (FSDP's
            mixed precision).
    """

    micro_batch_size: Size = 1
    seq_len: Size = 2048
    dtype: str = "bf16"
    precision: str = "pure"
    attention: str = "sdpa"
    loss: str = "eager"
    gradient_checkpointing: str = "non-reentrant"
    optimizer: str = "adamw"
    accumulating: bool = False
    max_grad_norm: float = 1.0
    attention_dropout: float | None = None
    compute_capability: tuple[int, int] = (8, 0)
    padded: bool = False
    keep_outputs: bool = False
    use_cache: bool = False
    target_len: Size | None = None
    images: int = 1
    image_size: tuple[int, int] | None = None
    experts: str = "grouped_mm"
    routing: str = "even"
    gathered_cast: bool = False
    kernels: str = BITSANDBYTES
    objective: Objective = SFT

    @property
    def sequences(self) -> Size:
        """Sequences of one forward: two for each pair of a preference."""
        return elements((self.micro_batch_size, self.objective.sequences))

    @property
    def target_length(self) -> Size:
        """Tokens of each target of an encoder-decoder."""
        return self.seq_len if self.target_len is None else self.target_len

    @property
    def autocast(self) -> str:
        """The dtype of matrix products under autocast; "" without."""
        if self.precision != "autocast":
            return ""
        return "fp16" if self.dtype == "fp16" else "bf16"
