"""What every family says about a model, whatever its architecture."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tuneplan.planner.methods.method import Method
    from tuneplan.planner.models.source import Source
    from tuneplan.planner.training.settings import Settings

from tuneplan.planner.errors import InputError

CAUSAL_LM = "causal-lm"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Dimensions that every language model has; a family's own spec adds to them.

    Attributes:
        id: hub id, or the path as the user gave it.
        model_type: the `model_type` of config.json.
        hidden_size: width of the residual stream.
        num_hidden_layers: decoder layers.
        vocab_size: rows of the embedding.
        max_position_embeddings: longest context the config states.
        tie_word_embeddings: the head is the embedding.
        num_attention_heads: query heads.
        num_key_value_heads: key/value heads.
        head_dim: size of a head.
        task: what the model is trained for, one of tasks.TASKS.
        num_labels: classes of a classification.
        note: what was read otherwise than the config says, for the report.
        router_logits: what `output_router_logits` makes of the routers' logits: "" nothing; "kept" in the model's output; or a
            "loss" too.

    """

    id: str
    model_type: str
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    task: str = field(default=CAUSAL_LM, kw_only=True)
    num_labels: int = field(default=2, kw_only=True)
    note: str = field(default="", kw_only=True)
    router_logits: str = field(default="", kw_only=True)

    @property
    def longest(self) -> int | None:
        """Positions that the model has where it cannot do with more."""
        return None

    @property
    def fixed_length(self) -> int:
        """Tokens of an image where the model reads nothing else; 0 where it reads sequences."""
        return 0

    @property
    def image_tokens(self) -> int:
        """Tokens of a sequence that an image takes; 0 where the model reads none beside text."""
        return 0

    @property
    def image_pixels(self) -> str:
        """Width and height of an image, for the report."""
        return ""

    def sized(self, image_size: tuple[int, int]) -> "ModelSpec":
        """The model as it reads images of a height and a width [pixels]. Raises InputError where their size is not free."""
        raise InputError(f"{self.id} does not read images of any size, so leave --image-size out")

    @property
    def source(self) -> "Source | None":
        """Traces of the real code where no family mirrors the model, else None."""
        return None

    def allows(self, method: "Method", settings: "Settings") -> bool:
        """Whether a search can look at the method under these settings."""
        if not method.allows(settings):
            return False
        return self.source is None or not self.source.refusal(method, settings)

    @property
    def is_mixture(self) -> bool:
        """Whether it has experts, of which each token gets a few."""
        return bool(getattr(self, "num_experts", 0))
