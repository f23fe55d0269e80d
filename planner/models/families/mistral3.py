"""Mistral 3 with images (Mistral Small 3.1): Pixtral's tower over all images at once, a projector that merges patches, a Mistral.

Mirrors transformers 5.23 models/mistral3/modeling_mistral3.py and models/pixtral/modeling_pixtral.py. The patches of all images
of a micro-batch lie behind each other, and a mask of every pair of them keeps images apart, so that it grows with their square.
"""

from dataclasses import dataclass, replace
from typing import Any

from tuneplan.planner.errors import InputError, NotModelledError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.activations import ACTIVATIONS, activation
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.matmul import cut_patches
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Size, Storage, Tensor, round_block
from tuneplan.planner.models import encoder, image_text, packed_tower, tasks, vision
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import gated_mlp
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.families import llama
from tuneplan.planner.models.families.llama import LlamaSpec
from tuneplan.planner.models.network import Stack
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.models.vision import VisionSpec

TASKS = (tasks.IMAGE_TEXT,)
TOWER, TEXT = "model.vision_tower.", "model.language_model."
PROJECTOR = "model.multi_modal_projector"
_TEXT = {
    "hidden_size": 5120,
    "head_dim": 128,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 32768,
    "vocab_size": 131072,
    "max_position_embeddings": 131072,
    "sliding_window": None,
}
_TOWER = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": 1540,
    "patch_size": 14,
    "hidden_act": "gelu",
}
DEFAULT_SIZE = (packed_tower.DEFAULT_SIDE,) * 2


@dataclass(frozen=True, slots=True)
class Mistral3Spec(ModelSpec):
    """Mistral 3. The dimensions of the base are those of the language model.

    Attributes:
        text: the language model.
        tower: the vision tower, for images of one size.
        merge: patches of a side that become one token.
        projector_act: between the projector's two layers.
        projector_bias: they have one.
    """

    text: LlamaSpec
    tower: VisionSpec
    merge: int
    projector_act: str
    projector_bias: bool

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of an image, high and wide."""
        (high, wide), (rows, columns) = self.tower.image_size, self.tower.patch_size
        return high // rows, wide // columns

    @property
    def image_tokens(self) -> int:
        """Tokens of the sequence that an image takes."""
        return self.tower.tokens // self.merge**2

    @property
    def image_pixels(self) -> str:
        """Width and height of an image."""
        return self.tower.pixels

    def sized(self, image_size: tuple[int, int]) -> "Mistral3Spec":
        """The model as it reads images of a height and a width [pixels], rounded up to whole tokens. Raises InputError."""
        if not all(1 <= side <= packed_tower.LARGEST_SIDE for side in image_size):
            raise InputError(
                f"{self.id}: images of {image_size[1]} x {image_size[0]} pixels cannot be; use 1 to {packed_tower.LARGEST_SIDE}"
            )
        units = [size * self.merge for size in self.tower.patch_size]
        high, wide = (-(-side // unit) * unit for side, unit in zip(image_size, units, strict=True))
        return replace(self, tower=replace(self.tower, image_size=(high, wide)))


def read(id: str, config: ConfigReader) -> Mistral3Spec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    inner = image_text.section(config, "text_config", "mistral", {"mistral": _TEXT}, "Mistral 3")
    tied = config.boolean("tie_word_embeddings", True)
    text = replace(llama.read(id, inner), tie_word_embeddings=tied)
    given = image_text.section(config, "vision_config", "pixtral", {"pixtral": {}}, "Mistral 3")
    keys = {"attention_probs_dropout_prob": "attention_dropout"}
    tower = VisionSpec(**vision.dimensions(id, given, _TOWER, keys, class_token=False))
    if tower.head_dim % 4:
        raise InputError(f"{given.origin}: heads of {tower.head_dim} cannot be rotated by rows and columns; check the config")
    if config.mapping.get("vision_feature_layer", -1) != -1:
        raise NotModelledError(f"{config.origin}: vision_feature_layer other than -1 is not known to tuneplan")
    act = config.text("projector_hidden_act", "gelu")
    if act not in ACTIVATIONS:
        raise InputError(f"{config.origin}: projector_hidden_act {act!r} is an activation that tuneplan does not know")
    config.integer("image_token_index", 10, minimum=0)
    return Mistral3Spec(
        id=id,
        model_type=config.text("model_type"),
        **image_text.of_text(text),
        text=text,
        tower=tower,
        merge=config.integer("spatial_merge_size", 2, maximum=2**6),
        projector_act=act,
        projector_bias=config.boolean("multimodal_projector_bias", False),
    ).sized(DEFAULT_SIZE)


def stacks(spec: Mistral3Spec) -> tuple[Stack, ...]:
    """The tower's layers and the language model's."""
    return (
        Stack(f"{TOWER}transformer.layers.*.", spec.tower.num_hidden_layers, _start, _tower_layer),
        Stack(f"{TEXT}layers.*.", spec.num_hidden_layers, _bridge, llama.layer),
    )


def text_stacks(spec: Mistral3Spec) -> tuple[Stack, ...]:
    """The language model alone, where sequences have no images; the tower stands beside it."""
    return (Stack(f"{TEXT}layers.*.", spec.num_hidden_layers, _text_start, llama.layer),)


def _start(model: Assembly, spec: Mistral3Spec, _: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, labels and pixels; embeddings, which wait for the tower, patches of all images, tables and the mask."""
    image_text.check_room(model, spec.image_tokens, around=spec.grid[0] // spec.merge)
    tape = model.begin("", 1)
    images = _images(model)
    batch = (*image_text.tokens_and_labels(model), vision.pixels(model, spec.tower, images))
    batch += (tape.record("image_sizes", (), tape.fresh((images, 2), "int64", False)),)
    leaves = image_text.words_of(model, llama.EMBEDDING, TEXT)
    hidden, others, held = _patches(model, spec, batch[2], hooked=True)
    shared = _tables(model, spec, hidden)
    given = tuple([tensor.storage for tensor in batch])
    carried = (*given, *leaves, *others, *held, *[tensor.storage for tensor in shared])
    block = close("embeddings", tape, None, hidden, carried, batch=len(given), leaves=(*leaves, *others) * 2)
    block.stays, block.exit_passed = given[2:3], False
    return block, shared


def _images(model: Assembly) -> Size:
    return model.token_shape[0] * model.settings.images


def _patches(
    model: Assembly, spec: Mistral3Spec, pixels: Tensor, hooked: bool
) -> tuple[Tensor, tuple[Storage, ...], tuple[Storage, ...]]:
    """Patches of all images behind each other, normed, `(1, P, hidden)`; what is held as a leaf; what the tower's code holds."""
    tape, tower = model.tape, spec.tower
    images = pixels.shape[0]
    weight = model.weight(f"{TOWER}patch_conv", (tower.hidden_size, tower.num_channels, *tower.patch_size), "other")
    x = pw.cast(tape, pixels, weight.dtype)
    made = cut_patches(tape, x, weight, None, (images, tower.hidden_size, tower.tokens))
    tape.hold(pixels, x)
    leaves = encoder.leaf(model, made) if hooked else ()
    each = image_text.apart(model, made, "unbind")
    rows = pw.copy(tape, tape.view("transpose", each, (1, images * tower.tokens, tower.hidden_size)), "cat")
    held = () if leaves else (made.storage,)  # a list has the patches of each image
    return model.rms_norm(rows, f"{TOWER}ln_pre"), leaves, held


def _tables(model: Assembly, spec: Mistral3Spec, x: Tensor) -> tuple[Tensor, ...]:
    """Cosines and sines of rows and columns, and the mask that keeps images apart, in the dtype of the patches."""
    tape, count = model.tape, x.shape[1]
    tables = [tape.record("rotary_table", (), tape.fresh((count, spec.tower.head_dim), x.dtype, False)) for _ in range(2)]
    return (*tables, tape.record("patch_mask", (), tape.fresh((1, 1, count, count), x.dtype, False)))


def _tower_layer(model: Assembly, spec: Mistral3Spec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A layer of the tower."""
    return close("tower_layer", model.tape, entry, _seen(model, spec, entry, shared))


def _seen(model: Assembly, spec: Mistral3Spec, entry: Tensor, shared: tuple[Tensor, ...]) -> Tensor:
    """Attention and a gated MLP, each behind a norm."""
    tape, tower = model.tape, spec.tower
    normed = model.rms_norm(entry, "attention_norm")
    cos, sin, mask = shared
    kernel = encoder.bidirectional(model, tower, normed.dtype, masked=True)
    names = [f"attention.{name}_proj" for name in "qkv"]
    q, k, v = encoder.projections(model, tower, kernel, normed, names, False)
    tape.scope = "attention"
    q, k = pw.rotate(tape, q, cos, sin), pw.rotate(tape, k, cos, sin)
    mixed, weights, held = encoder.both_ways(
        model, tower, kernel, (q, k, v), (mask,), tower.attention_dropout, prefixed=False, wide=True
    )
    tape.scope = ""
    y = model.linear(mixed, "attention.o_proj", tower.hidden_size)
    tape.hold(normed, *held, *weights)
    hidden = pw.add(tape, entry, model.submodule("self_attn", normed, entry, y))
    normed = model.rms_norm(hidden, "ffn_norm")
    out = gated_mlp(model, tower, normed, module="feed_forward")
    exit = pw.add(tape, hidden, model.submodule("mlp", normed, hidden, out))
    tape.hold(*weights)
    return exit


def _bridge(model: Assembly, spec: Mistral3Spec, entry: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """The projector, image tokens put among the others, and what the language model starts with."""
    assert entry is not None

    def joined() -> Tensor:
        tape = model.tape
        model.inside = ""
        made = _projected(model, spec, entry)
        model.inside = TEXT
        assert model.words is not None
        tape.held.append(made.storage)
        features = pw.cast(tape, pw.copy(tape, image_text.apart(model, made, "split"), "cat"), model.words.dtype)
        tape.outputs.append(features.storage)
        return image_text.scattered(model, model.words, features)[0]

    return _begin_text(model, spec, joined, entry)


def _projected(model: Assembly, spec: Mistral3Spec, x: Tensor) -> Tensor:
    """Patches normed, squares of them laid side by side image by image and merged, and two linear layers: `(tokens, hidden)`."""
    tape, width = model.tape, spec.tower.hidden_size
    count = x.shape[1] // spec.merge**2
    normed = model.rms_norm(tape.view("squeeze", x, x.shape[1:]), f"{PROJECTOR}.norm")
    tape.scope = f"{PROJECTOR}.patch_merger"
    each = image_text.apart(model, normed, "split")
    squares = tape.fresh((count, width * spec.merge**2), x.dtype, x.requires_grad or normed.requires_grad)
    tape.record("im2col", (each,), squares, gradients=(Gradient(each, round_block(each.nbytes), moved=2 * each.nbytes),))
    rows = pw.copy(tape, squares, "cat")
    tape.scope = ""
    merged = model.linear(rows, f"{PROJECTOR}.patch_merger.merging_layer", width)
    tape.hold(squares)
    inner = model.linear(merged, f"{PROJECTOR}.linear_1", spec.hidden_size, spec.projector_bias)
    tape.scope = PROJECTOR
    inner = activation(tape, inner, spec.projector_act)
    tape.scope = ""
    out = model.linear(inner, f"{PROJECTOR}.linear_2", spec.hidden_size, spec.projector_bias)
    tape.hold(merged)
    return out


def _text_start(model: Assembly, spec: Mistral3Spec, _: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """Without images: the tower stands idle."""
    image_text.idle(model, lambda: _stand_by(model, spec))
    return _begin_text(model, spec, None, None)


def _stand_by(model: Assembly, spec: Mistral3Spec) -> None:
    """Note the tower's weights, by way of ops that nobody walks."""
    model.begin("", 1)
    x, _, _ = _patches(model, spec, vision.pixels(model, spec.tower, model.token_shape[0]), hooked=False)
    shared = _tables(model, spec, x)
    for index in range(spec.tower.num_hidden_layers):
        model.begin(f"{TOWER}transformer.layers.{index}.", 1, index)
        x = _seen(model, spec, x, shared)
    model.begin("", 1)
    _projected(model, spec, x)


def _begin_text(model: Assembly, spec: Mistral3Spec, given: Any, entry: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    image_text.enter_text(model, spec.text, TEXT, own_cache=False)
    model.given = given
    block, shared = llama.start(model, spec.text)
    model.given = None
    if entry is not None:
        block.entry, block.entries_kept, block.exit_passed = entry, True, False
    return block, shared


def finish(model: Assembly, spec: Mistral3Spec, entry: Tensor) -> Block:
    """Final norm, head and loss of the language model."""
    return llama.finish(model, spec.text, entry)
