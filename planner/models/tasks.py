"""What a model is fine-tuned for: the names, and which of them a family mirrors."""

from collections.abc import Sequence

from tuneplan.planner.errors import InputError, NotModelledError, UnknownNameError
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.spec import CAUSAL_LM, ModelSpec

SEQ_CLS = "sequence-classification"
TOKEN_CLS = "token-classification"
MASKED_LM = "masked-lm"
SEQ2SEQ = "seq2seq-lm"
IMAGE_CLS = "image-classification"
IMAGE_TEXT = "image-text-to-text"
CONTRASTIVE = "contrastive"
TASKS = (CAUSAL_LM, SEQ2SEQ, MASKED_LM, SEQ_CLS, TOKEN_CLS, IMAGE_CLS, IMAGE_TEXT, CONTRASTIVE)
CLASSIFIES = (SEQ_CLS, TOKEN_CLS, IMAGE_CLS)
SHORT = {
    "clm": CAUSAL_LM,
    "seq2seq": SEQ2SEQ,
    "mlm": MASKED_LM,
    "seq-cls": SEQ_CLS,
    "token-cls": TOKEN_CLS,
    "image-cls": IMAGE_CLS,
    "vlm": IMAGE_TEXT,
    "contrastive": CONTRASTIVE,
}
"""Short forms of the command line."""
DEFAULT_LABELS = 2
MOST_LABELS = 2**20


def task_name(given: str) -> str:
    """The task of a word of the command line; "" for none. Raises UnknownNameError."""
    name = SHORT.get(given, given)
    if name and name not in TASKS:
        raise UnknownNameError("task", given, (*TASKS, *SHORT), "plan estimate --help")
    return name


def chosen(given: str, known: Sequence[str], config: ConfigReader) -> str:
    """The task to plan for: as given, or the first that the family knows. Raises InputError for one that it does not."""
    if given and given not in known:
        raise NotModelledError(
            f"{config.origin}: tuneplan does not know {config.text('model_type')} models for the task {given}",
            f"; use --task {' or '.join(known)}",
        )
    return given or known[0]


def described(
    spec: ModelSpec, target_len: int, images: int = 1, image_size: tuple[int, int] | None = None
) -> list[tuple[str, str]]:
    """A line for the head of a report; none for a causal language model. `image_size`: height and width, as asked for."""
    spec = spec if image_size is None else spec.sized(image_size)
    if spec.task == CAUSAL_LM:
        return []
    more = f", {spec.num_labels} classes" if spec.task in CLASSIFIES else ""
    more = f"{more}, {spec.fixed_length} tokens an image" if spec.fixed_length else more
    if spec.image_tokens:
        read = f"images of {spec.image_pixels} pixels, {spec.image_tokens} tokens each: {images} in each sequence"
        more = f"{more}, {read if images else 'text alone, without images'}"
    more = f"{more}, a text and an image a pair" if spec.task == CONTRASTIVE else more
    more = f", targets of {target_len} tokens" if spec.task == SEQ2SEQ else more
    return [("task", f"{spec.task}{more}")]


def with_labels(config: ConfigReader, count: int) -> ConfigReader:
    """The config with another number of classes. Raises InputError for one that cannot be."""
    if not 1 <= count <= MOST_LABELS:
        raise InputError(f"num-labels {count} is not a number of classes; use 1 to {MOST_LABELS}")
    kept = {k: v for k, v in config.mapping.items() if k not in ("id2label", "label2id")}
    return ConfigReader({**kept, "num_labels": count}, config.origin)


def check_labels(spec: ModelSpec, given: int | None) -> None:
    """Raise InputError for a number of classes that is given where nothing is classified."""
    if given is not None and spec.task not in CLASSIFIES:
        raise InputError(f"--num-labels {given} is for a classification, and {spec.id} is planned for {spec.task}; leave it out")


def labels_of(config: ConfigReader) -> int:
    """Classes that a config names, 2 where it names none, as in transformers. Raises InputError."""
    if config.has("id2label"):
        names = config.section("id2label").mapping
        return len(names) or DEFAULT_LABELS
    return config.integer("num_labels", DEFAULT_LABELS, maximum=MOST_LABELS)
