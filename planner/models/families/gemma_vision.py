"""Gemma 3 and PaliGemma with their vision tower: SigLIP, a projector, and tokens that see each other both ways.

Mirrors transformers 5.23 models/gemma3/modeling_gemma3.py (`Gemma3ForConditionalGeneration`), whose projector averages patches,
and models/paligemma/modeling_paligemma.py, whose projector is a linear layer; the language model is that of gemma.py. With images
each layer gets a mask, so that sdpa does not run FlashAttention.
"""

from dataclasses import dataclass, replace
from math import isqrt
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Size, Tensor, elements, round_block
from tuneplan.planner.models import image_text, siglip_tower, tasks, vision
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.families import gemma
from tuneplan.planner.models.families.gemma import GemmaSpec
from tuneplan.planner.models.network import Stack
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.models.vision import VisionSpec

TASKS = (tasks.IMAGE_TEXT,)
TOWER, TEXT = "model.vision_tower.", "model.language_model."
PROJECTOR = "model.multi_modal_projector"
_SECOND = {
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 9216,
}
_FIRST = {
    "hidden_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "intermediate_size": 24576,
}


@dataclass(frozen=True, slots=True)
class _Variant:
    """How the models differ.

    Attributes:
        title: name in messages.
        texts: language models, with what their configuration classes have for keys that a config leaves out; the first is usual.
        image_token: default of `image_token_index`.
        around: tokens that enclose those of an image (`boi_token_index`, `eoi_token_index`).
        averages: the projector averages patches.
    """

    title: str
    texts: dict[str, dict[str, int]]
    image_token: int
    around: int
    averages: bool


_VARIANTS = {
    "gemma3": _Variant("Gemma 3", {"gemma3_text": _SECOND}, 262144, around=2, averages=True),
    "paligemma": _Variant("PaliGemma", {"gemma": _FIRST, "gemma2": _SECOND}, 256000, around=0, averages=False),
}


@dataclass(frozen=True, slots=True)
class GemmaVisionSpec(ModelSpec):
    """Gemma 3 or PaliGemma. The dimensions of the base are those of the language model.

    Attributes:
        text: the language model.
        tower: the vision tower.
        mm_tokens: tokens of the sequence that an image takes.
    """

    text: GemmaSpec
    tower: VisionSpec
    mm_tokens: int

    @property
    def image_tokens(self) -> int:
        """Tokens of the sequence that an image takes."""
        return self.mm_tokens

    @property
    def image_pixels(self) -> str:
        """Width and height of an image."""
        return self.tower.pixels


def read(id: str, config: ConfigReader) -> GemmaVisionSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    variant = _VARIANTS[config.text("model_type")]
    inner = image_text.section(config, "text_config", next(iter(variant.texts)), variant.texts, variant.title)
    given = {**inner.mapping, "tie_word_embeddings": config.boolean("tie_word_embeddings", True)}
    if not variant.averages:  # both ways is what PaliGemma does wherever its config does not say otherwise
        given = {key: value for key, value in given.items() if key != "use_bidirectional_attention"}
    text = gemma.read(id, ConfigReader(given, inner.origin))
    known: dict[str, dict[str, Any]] = {"siglip_vision_model": {}}
    tower = siglip_tower.read(id, image_text.section(config, "vision_config", "siglip_vision_model", known, variant.title))
    tokens = _averaged(config, tower) if variant.averages else tower.tokens
    if not variant.averages and config.integer("projection_dim", 2048) != text.hidden_size:
        raise InputError(
            f"{config.origin}: projection_dim={config.integer('projection_dim', 2048)} is not the language model's "
            f"hidden_size={text.hidden_size}; check the config"
        )
    config.integer("image_token_index", variant.image_token, minimum=0)
    shared = image_text.of_text(text)
    return GemmaVisionSpec(id=id, model_type=config.text("model_type"), **shared, text=text, tower=tower, mm_tokens=tokens)


def _averaged(config: ConfigReader, tower: VisionSpec) -> int:
    """Tokens of an image whose patches are averaged over squares. Raises InputError for squares that do not fit."""
    tokens = config.integer("mm_tokens_per_image", 256, maximum=2**16)
    side, patches = isqrt(tokens), tower.image_size[0] // tower.patch_size[0]
    if side**2 != tokens or patches % side:
        raise InputError(
            f"{config.origin}: mm_tokens_per_image={tokens} is not a square of a part of the {patches} patches of a side of an "
            "image; check the config"
        )
    return tokens


def stacks(spec: GemmaVisionSpec) -> tuple[Stack, ...]:
    """The tower's layers and the language model's."""
    return (
        Stack(f"{TOWER}encoder.layers.*.", spec.tower.num_hidden_layers, _start, _tower_layer),
        Stack(f"{TEXT}layers.*.", spec.num_hidden_layers, _bridge, gemma.layer, form=gemma.layer_form),
    )


def text_stacks(spec: GemmaVisionSpec) -> tuple[Stack, ...]:
    """The language model alone, where sequences have no images; the tower stands beside it."""
    return (Stack(f"{TEXT}layers.*.", spec.num_hidden_layers, _text_start, gemma.layer, form=gemma.layer_form),)


def _start(model: Assembly, spec: GemmaVisionSpec, _: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, labels and pixels; embeddings, which wait for the tower, and patches."""
    image_text.check_room(model, spec.image_tokens, _VARIANTS[spec.model_type].around)
    tape = model.begin("", 1)
    batch = (*image_text.tokens_and_labels(model, ("token_type_ids",)), vision.pixels(model, spec.tower, _images(model)))
    leaves = image_text.words_of(model, gemma.EMBEDDING, TEXT, scaled=True)
    hidden, others = siglip_tower.embedded(model, spec.tower, TOWER, batch[-1], hooked=True)
    given = tuple([tensor.storage for tensor in batch])
    block = close("embeddings", tape, None, hidden, (*given, *leaves, *others), batch=len(given), leaves=(*leaves, *others) * 2)
    block.stays, block.exit_passed = given[-1:], False
    return block, ()


def _images(model: Assembly) -> Size:
    return model.token_shape[0] * model.settings.images


def _tower_layer(model: Assembly, spec: GemmaVisionSpec, entry: Tensor, _: tuple[Tensor, ...]) -> Block:
    """A layer of the tower."""
    return close("tower_layer", model.tape, entry, siglip_tower.layer(model, spec.tower, entry))


def _bridge(model: Assembly, spec: GemmaVisionSpec, entry: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """The tower's last norm and the projector, image tokens put among the others, and what the language model starts with."""
    assert entry is not None

    def joined() -> Tensor:
        model.inside = ""
        normed = model.layer_norm(entry, f"{TOWER}post_layernorm")
        features = _projected(model, spec, normed)
        model.inside = TEXT
        model.tape.held.append(normed.storage)
        assert model.words is not None
        features = pw.cast(model.tape, features, model.words.dtype)
        model.tape.outputs.append(features.storage)
        return image_text.scattered(model, model.words, features)[0]

    if not (model.method.virtual_tokens or model.method.prefix_length):  # peft drops token_type_ids, and with them these masks
        model.settings = replace(model.settings, padded=True)
    return _begin_text(model, spec, joined, entry)


def _projected(model: Assembly, spec: GemmaVisionSpec, x: Tensor) -> Tensor:
    """Patches multiplied, or averaged over squares, normed and multiplied: `(images, tokens, hidden)`."""
    tape = model.tape
    if not _VARIANTS[spec.model_type].averages:
        return model.linear(x, f"{PROJECTOR}.linear", spec.hidden_size, bias=True)
    images, count, width = x.shape
    tape.scope = PROJECTOR
    grid = pw.copy(tape, tape.view("transpose", x, (images, width, count)), "contiguous")
    pooled = tape.fresh((images, width, spec.image_tokens), x.dtype, x.requires_grad)
    back = Gradient(grid, round_block(grid.nbytes), moved=grid.nbytes + pooled.nbytes)
    tape.record("avg_pool2d", (grid,), pooled, saved=(grid,), gradients=(back,))
    tape.scope = ""
    turned = tape.view("transpose", pooled, (images, spec.image_tokens, width))
    normed = model.rms_norm(turned, f"{PROJECTOR}.mm_soft_emb_norm", pw.rms_norm_offset)
    rows = pw.copy(tape, normed, "reshape")
    weight = model.weight(PROJECTOR, (width, spec.hidden_size), "other", "mm_input_projection_weight")
    out = tape.fresh((images, spec.image_tokens, spec.hidden_size), rows.dtype, rows.requires_grad or weight.requires_grad)
    flops: Size = 2 * elements(out.shape) * width
    moved = rows.nbytes + weight.nbytes + out.nbytes
    gradients = tuple([Gradient(t, round_block(t.nbytes), flops=flops, moved=moved) for t in (rows, weight)])
    saved = ((rows,) if weight.requires_grad else ()) + ((weight,) if rows.requires_grad else ())
    tape.record("matmul", (rows, weight), out, saved=saved, gradients=gradients, flops=flops, moved=moved)
    tape.hold(grid, pooled, normed)
    return out


def _text_start(model: Assembly, spec: GemmaVisionSpec, _: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """Without images: the tower stands idle."""
    image_text.idle(model, lambda: _stand_by(model, spec))
    return _begin_text(model, spec, None, None)


def _stand_by(model: Assembly, spec: GemmaVisionSpec) -> None:
    """Note the tower's weights, by way of ops that nobody walks."""
    model.begin("", 1)
    x, _ = siglip_tower.embedded(model, spec.tower, TOWER, vision.pixels(model, spec.tower, model.token_shape[0]), hooked=False)
    for index in range(spec.tower.num_hidden_layers):
        model.begin(f"{TOWER}encoder.layers.{index}.", 1, index)
        x = siglip_tower.layer(model, spec.tower, x)
    model.begin("", 1)
    _projected(model, spec, model.layer_norm(x, f"{TOWER}post_layernorm"))


def _begin_text(model: Assembly, spec: GemmaVisionSpec, given: Any, entry: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    image_text.enter_text(model, spec.text, TEXT)
    model.given = given
    block, shared = gemma.start(model, spec.text)
    model.given = None
    if entry is not None:
        block.entry, block.exit_passed = entry, False
    return block, shared


def finish(model: Assembly, spec: GemmaVisionSpec, entry: Tensor) -> Block:
    """Final norm, head and loss of the language model."""
    return gemma.finish(model, spec.text, entry)
