"""What models of images and text share: room for images in a sequence, features put among the tokens, towers that stand idle.

Mirrors transformers 5.23 models/llava, whose way of joining both is that of the other models. `masked_scatter` as CUDA runs it:
aten/src/ATen/native/cuda/IndexKernel.cu.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tuneplan.planner.errors import InputError, NotModelledError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block
from tuneplan.planner.graph.matmul import embedding
from tuneplan.planner.graph.tape import Gradient, Op
from tuneplan.planner.graph.tensor import Storage, Tensor, elements, round_block
from tuneplan.planner.models import decoder, encoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.spec import ModelSpec

SHARED = (
    *("hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings", "tie_word_embeddings"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
"""Dimensions of a model of images and text that are those of its language model."""


def of_text(text: ModelSpec) -> dict[str, Any]:
    """The fields `SHARED` by name."""
    return {name: getattr(text, name) for name in SHARED}


def section(config: ConfigReader, key: str, usual: str, known: dict[str, dict[str, Any]], whole: str) -> ConfigReader:
    """A part of the config with what its class has for keys that are left out. Raises InputError for a type that is not known.

    `usual`: its model type unless it says one; `known`: defaults by type; `whole`: name of the model.
    """
    inner = config.section(key) if config.has(key) else ConfigReader({}, f"{config.origin}, {key}")
    kind = inner.text("model_type", usual)
    if kind not in known:
        raise NotModelledError(
            f"{inner.origin}: model_type {kind!r} is a part of {whole} that tuneplan does not know",
            f"; it knows {', '.join(known)}",
        )
    return ConfigReader({**known[kind], **inner.mapping, "model_type": kind}, inner.origin)


def check_room(model: Assembly, tokens: int, around: int = 0) -> None:
    """Raise InputError where sequences are shorter than their images. `tokens`: of an image; `around`: that enclose each."""
    images = model.settings.images
    longest: Any = model.settings.seq_len
    shortest = longest if isinstance(longest, int) else int(longest.min())
    if shortest < images * (tokens + around):
        enclosed = f" and {around} around it" if around else ""
        smaller = ", or a smaller --image-size" if model.settings.image_size or around else ""
        raise InputError(
            f"{model.spec.id} takes {tokens} tokens for an image{enclosed}, so that sequences of {shortest} have no room for "
            f"{images}; use --seq-len {images * (tokens + around) + 1} or more, or fewer --images{smaller}"
        )


def tokens_and_labels(model: Assembly, more: tuple[str, ...] = ()) -> tuple[Tensor, ...]:
    """Token ids, labels, and what else a processor gives of each token."""
    tape = model.tape
    shape = model.token_shape
    return tuple([tape.record(name, (), tape.fresh(shape, "int64", False)) for name in ("token_ids", "labels", *more)])


def words_of(model: Assembly, weight: str, inside: str, scaled: bool = False) -> tuple[Storage, ...]:
    """Embed tokens, which wait in `model.words` for images; gives what is held of them as a leaf.

    `weight`: name of the embedding; `inside`: see `Assembly`; `scaled`: the embedding module multiplies its output.
    """
    tape = model.tape
    model.inside = inside
    words = embedding(tape, model.token_shape, model.embedding_weight(weight))
    words = pw.scale(tape, words, "embed_scale") if scaled else words
    model.inside = ""
    leaves = encoder.leaf(model, words)
    for part in model.method.parts:
        words = part.embedded(model, words)
    words.crosses = True
    if model.method.virtual_tokens:
        tape.outputs.append(words.storage)
    model.words, model.words_held = words, bool(leaves or model.method.virtual_tokens)
    if not model.words_held:
        tape.handed.append(words.storage)
    return leaves


def scattered(model: Assembly, words: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """`(batch, length, hidden)`: embeddings in which features stand for image tokens; also the mask of their places."""
    tape = model.tape
    mask = tape.record("special_image_mask", (), tape.fresh(words.shape[:2], "bool", False))
    out = tape.fresh(words.shape, words.dtype, words.requires_grad or features.requires_grad)
    scratch = round_block(8 * elements(words.shape)) + round_block(elements(words.shape))
    gradients = (
        Gradient(words, round_block(words.nbytes), moved=2 * words.nbytes),
        Gradient(features, round_block(features.nbytes), moved=2 * features.nbytes),
    )
    tape.record("masked_scatter", (words, features, mask), out, saved=(mask,), gradients=gradients, scratch=scratch)
    tape.held.append(mask.storage)
    if not model.words_held:
        gone = ((words.storage.nbytes, words.storage.category),)
        tape.ops.append(Op("embeddings_gone", (), launches=0, spends=gone))
    return out, mask


def apart(model: Assembly, made: Tensor, kind: str) -> Tensor:
    """Features of all images as those of each (`kind`: the name of that): views, whose gradients are joined."""
    rows = model.tape.view(kind, made, made.shape)
    if made.requires_grad:
        model.tape.ops[-1].gradients = (Gradient(made, round_block(made.nbytes), moved=2 * made.nbytes),)
    return rows


def idle(model: Assembly, record: Callable[[], object]) -> None:
    """Weights whose ops `record` notes down are left to be trained, but have no part in the loss."""
    known = set(model.parameters)
    record()
    for name in set(model.parameters) - known:
        parameter = model.parameters[name]
        parameter.idle, parameter.trainable, parameter.tensor.requires_grad = parameter.trainable, False, False


def enter_text(model: Assembly, spec: ModelSpec, inside: str, own_cache: bool = True) -> None:
    """From here on the language model is recorded.

    transformers' Trainer turns the cache off in the outer config alone (trainer.py of transformers 5.23). `own_cache`: the
    language model reads its own config; else the model's code hands on what the outer one says.
    """
    if own_cache:
        model.settings = replace(model.settings, use_cache=not model.method.prefix_length)
    model.spec, model.inside = spec, inside


def begin_text(
    model: Assembly,
    text: ModelSpec,
    inside: str,
    weight: str,
    given: Callable[[], Tensor] | None,
    entry: Tensor | None,
    **tables: Any,
) -> tuple[Block, tuple[Tensor, ...]]:
    """The block before the language model's layers, and what they share.

    `weight`: name of its embedding; `given`: records what enters it, None for embedded tokens alone; `entry`: what the tower
    gave, None without images; `tables`: see `decoder.start`.
    """
    enter_text(model, text, inside)
    model.given = given
    block, shared = decoder.start(model, weight, **tables)
    model.given = None
    if entry is not None:
        block.entry, block.entries_kept, block.exit_passed = entry, True, False
    return block, shared


def put_among_words(model: Assembly, made: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Features of images, taken apart by image (`kind`) and joined again, among the words; also the mask of their places."""
    tape = model.tape
    assert model.words is not None
    features = pw.cast(tape, pw.copy(tape, apart(model, made, kind), "cat"), model.words.dtype)
    tape.held.append(features.storage)
    return scattered(model, model.words, features)


def refuse_reentrant(model: Assembly, entry: Tensor, exit: Tensor) -> None:
    """Raise InputError where reentrant checkpointing would cut the gradients of a tower's layer."""
    if model.settings.gradient_checkpointing == "reentrant" and exit.requires_grad and not entry.requires_grad:
        raise InputError(
            f"{model.spec.id} with {model.method.name}: reentrant checkpointing gives a layer gradients only where its input has "
            "one, which frozen patches do not; use non-reentrant checkpointing, which is the default"
        )
