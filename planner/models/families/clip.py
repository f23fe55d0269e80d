"""CLIP: an image tower and a text tower, trained so that what belongs together lies together.

Mirrors transformers 5.23 models/clip/modeling_clip.py with `return_loss=True`. The loss is over the pairs of one micro-batch on
one rank. Not modelled: gathering the embeddings of other ranks, which transformers' own code does not do.
"""

from dataclasses import dataclass

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import loss as losses
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.activations import ACTIVATIONS, power
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.matmul import batched, embedding
from tuneplan.planner.graph.tape import Gradient, Tape
from tuneplan.planner.graph.tensor import LOGITS, Tensor, round_block, tensor_bytes
from tuneplan.planner.models import clip_tower, encoder, encoder_head, tasks, vision
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.encoder import EncoderSpec
from tuneplan.planner.models.network import Stack
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.models.vision import VisionSpec

TASKS = (tasks.CONTRASTIVE,)
TOWER, TEXT = "vision_model.", "text_model."
_TEXT = {
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@dataclass(frozen=True, slots=True)
class ClipSpec(ModelSpec):
    """CLIP. The dimensions of the base are those of the text tower.

    Attributes:
        text: the text tower.
        tower: the image tower.
        projection_dim: width of the embeddings that are compared.
    """

    text: EncoderSpec
    tower: VisionSpec
    projection_dim: int

    @property
    def longest(self) -> int | None:
        """The text tower's table of positions ends."""
        return self.max_position_embeddings


def read(id: str, config: ConfigReader) -> ClipSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    inner, outer = (_section(config, f"{name}_config", f"clip_{name}_model") for name in ("text", "vision"))
    keys = {"attention_probs_dropout_prob": "attention_dropout"}
    text = EncoderSpec(**encoder.dimensions(id, inner, _TEXT, keys, ACTIVATIONS))
    return ClipSpec(
        id=id,
        model_type=config.text("model_type"),
        **{name: getattr(text, name) for name in _SHARED},
        text=text,
        tower=clip_tower.read(id, outer),
        projection_dim=config.integer("projection_dim", 512),
        note="the loss compares the pairs of one micro-batch on one rank alone: with a smaller one it is another training",
    )


_SHARED = (
    *("hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings", "tie_word_embeddings"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)


def _section(config: ConfigReader, key: str, kind: str) -> ConfigReader:
    """A part of the config; what its class has where there is none."""
    inner = config.section(key) if config.has(key) else ConfigReader({}, f"{config.origin}, {key}")
    return ConfigReader({**inner.mapping, "model_type": kind}, inner.origin)


def stacks(spec: ClipSpec) -> tuple[Stack, ...]:
    """The image tower and the text tower."""
    return (
        Stack(f"{TOWER}encoder.layers.*.", spec.tower.num_hidden_layers, _start, _tower_layer),
        Stack(f"{TEXT}encoder.layers.*.", spec.num_hidden_layers, _bridge, _text_layer),
    )


def _start(model: Assembly, spec: ClipSpec, _: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids and pixels, and what enters the image tower."""
    encoder.refuse_losses(model)
    encoder.check_length(model, spec.max_position_embeddings)
    if model.method.virtual_tokens or model.method.prefix_length:
        raise InputError(f"{spec.id} compares texts and images, for which peft has no virtual tokens and no prefixes; use lora")
    if model.settings.padded and model.settings.attention != "flash":
        raise InputError(f"{spec.id}: a mask for padded texts is not planned; leave --padded out, CLIP's own texts have none")
    tape = model.begin("", 1)
    rows, length = model.token_shape
    ids = tape.record("token_ids", (), tape.fresh((rows, length), "int64", False))
    pixels = vision.pixels(model, spec.tower, rows)
    hidden, leaves = clip_tower.embedded(model, spec.tower, TOWER, pixels, hooked=True)
    carried = (ids.storage, pixels.storage, *leaves)
    block = close("vision.embeddings", tape, None, hidden, carried, batch=2, leaves=leaves * 2)
    block.stays = (pixels.storage,)
    return block, ()


def _tower_layer(model: Assembly, spec: ClipSpec, entry: Tensor, _: tuple[Tensor, ...]) -> Block:
    """A layer of the image tower."""
    return close("vision.layer", model.tape, entry, clip_tower.layer(model, spec.tower, entry))


def _bridge(model: Assembly, spec: ClipSpec, entry: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """The embeddings of the images, which cross to the loss; what enters the text tower, and its mask."""
    assert entry is not None
    tape = model.begin("", 1)
    pooled = model.layer_norm(encoder_head.first_token(model, entry), f"{TOWER}post_layernorm")
    images = model.linear(pooled, "visual_projection", spec.projection_dim)
    images.crosses = True
    model.words = images
    rows, length = model.token_shape
    prefix = f"{TEXT}embeddings"
    words = embedding(
        tape, (rows, length), model.weight(f"{prefix}.token_embedding", (spec.vocab_size, spec.hidden_size), "embedding")
    )
    leaves = encoder.leaf(model, words)
    most = spec.max_position_embeddings
    model.common(f"{prefix}.position_ids", (1, most), "int64", trained=False, saved=False, buffer=True)
    positions = embedding(tape, (1, length), model.weight(f"{prefix}.position_embedding", (most, spec.hidden_size), "embedding"))
    hidden = pw.add(tape, words, positions)
    tape.hold(words, positions)
    masks: tuple[Tensor, ...] = ()
    if model.settings.attention == "eager":
        shape = (rows, 1, length, length)
        masks = (tape.record("mask", (), tape.fresh(shape, hidden.dtype, False), scratch=tensor_bytes(shape, "bool")),)
    tape.outputs += [entry.storage, images.storage]
    carried = (images.storage, *[m.storage for m in masks], *leaves)
    block = close("text.embeddings", tape, entry, hidden, carried, entry_held=False, leaves=leaves * 2)
    block.early_leaves = leaves
    return block, masks


def _text_layer(model: Assembly, spec: ClipSpec, entry: Tensor, masks: tuple[Tensor, ...]) -> Block:
    """A layer of the text tower, whose tokens look back alone."""
    exit = vision.layer(model, spec.text, entry, clip_tower.NAMES, True, masks, causal=True)
    return close("text.layer", model.tape, entry, exit)


def finish(model: Assembly, spec: ClipSpec, entry: Tensor) -> Block:
    """The embeddings of the texts, and the loss over all pairs of a micro-batch."""
    tape = model.begin("", 1)
    images = model.words
    assert images is not None
    last = model.layer_norm(entry, f"{TEXT}final_layer_norm")
    rows, _, width = last.shape
    pooled = tape.fresh((rows, width), last.dtype, last.requires_grad)
    tape.record("index", (last,), pooled, gradients=(Gradient(last, round_block(last.nbytes), moved=last.nbytes),))
    texts = model.linear(pooled, "text_projection", spec.projection_dim)
    tape.category = LOGITS
    pictures, sentences = _unit(tape, images), _unit(tape, texts)
    similar = batched(tape, sentences, pictures, (rows, rows), spec.projection_dim)
    factor = model.weight("", (), "other", "logit_scale")
    logits = pw.multiply(tape, similar, pw.tanh(tape, factor, "exp"))
    loss = pw.add(tape, losses.classification(tape, logits), losses.classification(tape, logits))
    tape.outputs += [last.storage, texts.storage, pictures.storage, sentences.storage, logits.storage]
    return encoder_head.ended(model, entry, pw.scale(tape, loss))


def _unit(tape: Tape, x: Tensor) -> Tensor:
    """`x / _get_vector_norm(x)`."""
    square = power(tape, x)
    total = tape.fresh((x.shape[0], 1), x.dtype, x.requires_grad)
    tape.record("sum", (square,), total, gradients=(Gradient(square, None, view=True),))
    return pw.divide(tape, x, power(tape, total))
